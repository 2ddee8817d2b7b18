// Calls of tools: what the model asks for, and the results that a user types.
import { Component, html } from "./html.js";
import { draft } from "./drafts.js";
import { icon } from "./icons.js";

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}

export const Calls = ({ calls }) =>
  calls.map(
    (call, index) => html`
  <details class="card" key=${index}>
    <summary>${icon("tool")}<span>Calls <code>${call.name}</code></span></summary>
    <pre tabindex="0" role="group" aria-label="Arguments"><code>${pretty(call.arguments)}</code></pre>
  </details>
`,
  );

export const Results = ({ results }) =>
  results.map(
    (result, index) => html`
  <details class="card" key=${index}>
    <summary>${icon("onward")}<span>Result of <code>${result.name}</code></span></summary>
    <pre tabindex="0" role="group" aria-label="Result"><code>${pretty(result.content)}</code></pre>
  </details>
`,
  );

// A box for the result of each call. What is typed is kept until it is sent.
export class ResultForm extends Component {
  place = (index) => `${this.props.turn.id}.${index}`;
  state = { texts: this.props.turn.calls.map((_, index) => draft.get(this.place(index))) };

  type(index, text) {
    draft.set(this.place(index), text);
    this.setState({ texts: this.state.texts.with(index, text) });
  }

  send = (event) => {
    event.preventDefault();
    const { turn, send } = this.props;
    const results = turn.calls.map((call, index) => ({
      id: call.id,
      name: call.name,
      content: this.state.texts[index],
    }));
    turn.calls.forEach((_, index) => draft.set(this.place(index), ""));
    send(turn, results);
  };

  render({ turn, busy }, { texts }) {
    return html`
      <form class="results" onSubmit=${this.send}>
        ${turn.calls.map(
          (call, index) => html`
          <label key=${index}>
            <span>Result of <code>${call.name}</code></span>
            <textarea rows="3" class="code-input" spellcheck="false" required placeholder="What the tool returned"
              value=${texts[index]} onInput=${(event) => this.type(index, event.target.value)} />
          </label>
        `,
        )}
        <button type="submit" class="primary" disabled=${busy}>
          Send ${turn.calls.length === 1 ? "the result" : "the results"}
        </button>
      </form>
    `;
  }
}
