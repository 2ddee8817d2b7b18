// Small drawings for buttons, 24 by 24, in the colour of the text around them. Their buttons carry the words.
import { html } from "./html.js";

const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8zM9 10h6M9 12h6M9 14h6M9 15h6",
  attach: "M20 11.5 12.2 19a5 5 0 0 1-7-7l8-7.8a3.4 3.4 0 0 1 4.7 4.8l-7.8 7.6a1.7 1.7 0 0 1-2.4-2.4l7-6.9",
  copy: "M9 9h10v10H9zM5 15V5h10",
  again: "M20 12a8 8 0 1 1-2.4-5.7M20 3v4h-4",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  onward: "M5 12h13M12 6l6 6-6 6",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  gauge: "M4 17a8 8 0 1 1 16 0M12 17l4-6",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  export: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6",
  import: "M12 4v11M8 11l4 4 4-4M5 14v6h14v-6",
  tool: "M14 6a4.5 4.5 0 0 0-5.6 5.8L4 16.2V20h3.8l4.4-4.4A4.5 4.5 0 0 0 18 10l-3 2-3-3z",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12M16 16l4 4",
};

export const icon = (name) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>
`;

// A button that shows a drawing; its words are its name, for those who hear them and those who point at it.
export const iconButton = (name, label, onClick, more = {}) => html`
  <button type="button" class="icon-button" aria-label=${label} title=${label} onClick=${onClick} ...${more}>
    ${icon(name)}
  </button>
`;
