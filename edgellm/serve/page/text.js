// A text drawn from Markdown. While it grows only the parts that changed are drawn anew, so that what is marked with
// the mouse stays marked, and long answers stay quick.
import { Component, createRef, html } from "./html.js";
import { nodes, parts } from "./markdown.js";

export class Text extends Component {
  box = createRef();
  drawn = [];

  componentDidMount() {
    this.show();
  }

  shouldComponentUpdate(next) {
    return next.text !== this.props.text;
  }

  componentDidUpdate() {
    this.show();
  }

  show = () => {
    const box = this.box.current;
    if (!box) return; // gone before its colours came
    const wanted = parts(this.props.text, this.show);
    let same = 0;
    while (same < wanted.length && wanted[same] === this.drawn[same]) same += 1;
    while (box.childNodes.length > same) box.lastChild.remove();
    for (const part of wanted.slice(same)) {
      const around = document.createElement("div");
      around.append(nodes(part));
      around.querySelectorAll("pre").forEach(framed);
      around.querySelectorAll("table").forEach(scrolling);
      box.append(around);
      around.querySelectorAll(".formula").forEach((formula) => {
        if (formula.scrollWidth > formula.clientWidth) focusable(formula, "Formula");
      });
    }
    this.drawn = wanted;
  };

  render() {
    return html`<div class="text" ref=${this.box} onClick=${copy} />`;
  }
}

// Code gets a bar with its language and a button that copies it, and can be scrolled by keys.
function framed(pre) {
  const frame = document.createElement("div");
  frame.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const language = document.createElement("span");
  language.textContent = pre.dataset.language || "text";
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "quiet copy", textContent: "Copy" });
  button.setAttribute("aria-label", "Copy this code");
  bar.append(language, button);
  pre.replaceWith(frame);
  frame.append(bar, pre);
  focusable(pre, "Code");
}

function scrolling(table) {
  const around = document.createElement("div");
  around.className = "table";
  table.replaceWith(around);
  around.append(table);
  focusable(around, "Table");
}

function focusable(node, label) {
  node.tabIndex = 0;
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", label);
}

async function copy(event) {
  const button = event.target.closest(".copy");
  if (!button) return;
  const code = button.closest(".code").querySelector("code").textContent;
  button.textContent = (await copied(code)) ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// Puts a text on the clipboard; whether that worked.
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // forbidden, or the page came without https from another machine
  }
}
