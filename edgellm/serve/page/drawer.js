// A sheet at the side. The browser's dialog keeps the focus in it, closes it with Escape and gives the focus back.
import { Component, createRef, html } from "./html.js";
import { iconButton } from "./icons.js";

export class Drawer extends Component {
  box = createRef();

  componentDidMount() {
    this.box.current.showModal();
  }

  render({ title, close, children }) {
    const outside = (event) => event.target === this.box.current && this.box.current.close();
    return html`
      <dialog ref=${this.box} class="drawer" aria-label=${title} onClose=${close} onClick=${outside}>
        <div class="drawer-body">
          <header><h2>${title}</h2>${iconButton("close", "Close", () => this.box.current.close())}</header>
          ${children}
        </div>
      </dialog>
    `;
  }
}
