// What went wrong with an answer, in words, at its place, and the ways that lead on.
import { Component, html } from "./html.js";
import { key } from "./api.js";
import { laterStart } from "./conversation.js";

const button = (words, act, kind = "") => html`<button type="button" class=${kind} onClick=${act}>${words}</button>`;

// trouble: {kind, message, detail}; ways: buttons.
export function Notice({ trouble, children }) {
  return html`
    <div class="notice" role="group" aria-label="Error">
      <p><strong>${trouble.message}</strong> ${trouble.detail}</p>
      ${children && html`<div class="ways">${children}</div>`}
    </div>
  `;
}

// A failed answer. Everything is kept: what was asked, and what came.
export function Failed({ turn, chats, act, last }) {
  const { trouble } = turn;
  if (!last) return html`<${Notice} trouble=${trouble} />`; // the conversation went on
  const goesOn = Boolean(turn.content.trim());
  const again = button("Try again", () => chats.again(turn), goesOn ? "" : "primary");
  const anew = () => chats.refresh().then(() => chats.again(turn));
  const shorter = trouble.kind === "long" && laterStart(chats.current);
  if (trouble.kind === "key") return html`<${Notice} trouble=${trouble}><${KeyForm} done=${anew} /><//>`;
  return html`
    <${Notice} trouble=${trouble}>
      ${shorter && button("Leave out the earlier half and try again", () => chats.shorten(turn), "primary")}
      ${trouble.kind === "long" && button("Shorten the message", () => act.edit(chats.current.turns[turn.parent]))}
      ${trouble.kind === "settings" && button("Open the settings", act.settings, "primary")}
      ${goesOn && button("Continue", () => chats.goOn(turn), "primary")}
      ${trouble.kind === "model" ? button("Look for models and try again", anew, "primary") : again}
    <//>
  `;
}

// Asks for the key, which is kept until the tab is closed.
export class KeyForm extends Component {
  state = { text: "", busy: false };

  submit = async (event) => {
    event.preventDefault();
    key.set(this.state.text.trim());
    this.setState({ busy: true });
    await this.props.done();
    this.setState({ text: "", busy: false }); // still here: it was not the right one
  };

  render(_, { text, busy }) {
    const type = (event) => this.setState({ text: event.target.value });
    return html`
      <form class="key" onSubmit=${this.submit}>
        <label>
          <span>Key</span>
          <input type="password" autocomplete="off" required value=${text} onInput=${type} />
        </label>
        <button type="submit" class="primary" disabled=${busy}>Use this key</button>
        <p class="hint">It is kept in this tab only, until you close it.</p>
      </form>
    `;
  }
}
