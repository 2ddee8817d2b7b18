// Markup in JavaScript: html`<p>…</p>` makes what preact draws. Values in it are text, never markup.
import { Component, createRef, h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);
export { Component, createRef, render };

// Class names from those that hold: classes("turn", late && "late").
export const classes = (...names) => names.filter(Boolean).join(" ");
