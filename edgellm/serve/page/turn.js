// A turn of the conversation as it is seen, with what can be done about it.
import { Component, createRef, html, classes } from "./html.js";
import { Calls, ResultForm, Results } from "./calls.js";
import { draft } from "./drafts.js";
import { icon, iconButton } from "./icons.js";
import { bytes } from "./numbers.js";
import { Progress, Report } from "./report.js";
import { Text, copied } from "./text.js";
import { Failed } from "./ways.js";

// props: turn, siblings (turns in its place), last, answering (its Answering while it runs), editing, chats, act.
// act: {edit(turn or null), settings()}. stamp tells whether anything of it has changed.
export class Turn extends Component {
  shouldComponentUpdate(next) {
    return next.stamp !== this.props.stamp;
  }

  render(props) {
    const { turn, editing } = props;
    const who = { user: "You", assistant: turn.model || "Model", tool: "Results" }[turn.role];
    const View = { user: Question, assistant: Answer, tool: ToolResults }[turn.role];
    return html`
      <article class=${classes("turn", turn.role)} aria-label=${who} aria-busy=${turn.state === "running"}>
        ${editing ? html`<${Edit} ...${props} />` : html`<${View} ...${props} />`}
      </article>
    `;
  }
}

// "2/3" with arrows, where a turn has others in its place.
function Branches({ turn, siblings, chats, busy }) {
  if (siblings.length < 2) return null;
  const at = siblings.indexOf(turn);
  const go = (to) => () => chats.see(siblings[to]);
  return html`
    <span class="branches" role="group" aria-label="Versions">
      ${iconButton("left", "Earlier version", go(at - 1), { disabled: at === 0 || busy })}
      <span aria-label=${`Version ${at + 1} of ${siblings.length}`} role="img">${at + 1}/${siblings.length}</span>
      ${iconButton("right", "Later version", go(at + 1), { disabled: at === siblings.length - 1 || busy })}
    </span>
  `;
}

function Question(props) {
  const { turn, chats, act, busy } = props;
  return html`
    <div class="bubble">
      ${(turn.files ?? []).map((file, index) => html`<${Attached} key=${index} file=${file} />`)}
      ${turn.content && html`<div class="typed">${turn.content}</div>`}
    </div>
    <footer>
      <${Branches} ...${props} />
      ${iconButton("edit", "Edit this message", () => act.edit(turn), { disabled: busy })}
      <${CopyButton} text=${turn.content} />
    </footer>
  `;
}

function Attached({ file }) {
  if (file.url) {
    return html`
      <figure class="picture"><img src=${file.url} alt=${file.name} /><figcaption>${file.name}</figcaption></figure>
    `;
  }
  return html`
    <details class="card">
      <summary>${icon("file")}<span>${file.name}</span><small>${bytes(file.text.length)}</small></summary>
      <pre tabindex="0" role="group" aria-label=${file.name}><code>${file.text}</code></pre>
    </details>
  `;
}

function ToolResults(props) {
  const { turn, act, busy } = props;
  return html`
    <${Results} results=${turn.results} />
    <footer>
      <${Branches} ...${props} />
      ${iconButton("edit", "Send other results", () => act.edit(turn), { disabled: busy })}
    </footer>
  `;
}

function Answer(props) {
  const { turn, last, answering, chats, act, busy } = props;
  const running = turn.state === "running";
  return html`
    ${turn.reasoning && html`<${Reasoning} turn=${turn} running=${running} />`}
    ${running && answering?.progress && html`<${Progress} progress=${answering.progress} />`}
    ${running && !answering?.progress && !turn.content && !turn.calls.length && !turn.reasoning && html`
      <p class="waiting">${answering ? "Waiting for the model" : "Being answered in another window"}</p>
    `}
    ${turn.content && html`<${Text} text=${turn.form ? formed(turn.content) : turn.content} />`}
    <${Calls} calls=${turn.calls} />
    ${last && turn.state === "done" && turn.calls.length > 0 && html`
      <${ResultForm} turn=${turn} busy=${busy} send=${(to, results) => chats.sendResults(to.id, results)} />
    `}
    ${turn.state === "failed" && html`<${Failed} turn=${turn} chats=${chats} act=${act} last=${last} />`}
    ${ended(turn) && html`
      <p class="ended">
        ${ended(turn)}
        ${last && turn.content.trim() && html`
          <button type="button" onClick=${() => chats.goOn(turn)} disabled=${busy}>Continue</button>
        `}
      </p>
    `}
    ${!running && html`
      <footer>
        <${Branches} ...${props} />
        <${Report} turn=${turn} />
        ${iconButton("again", "Answer again", () => chats.again(turn), { disabled: busy })}
        ${turn.content && iconButton("edit", "Edit this answer", () => act.edit(turn), { disabled: busy })}
        ${turn.content && html`<${CopyButton} text=${turn.content} />`}
      </footer>
    `}
  `;
}

// Why an answer ends where it does, when that is not its own end.
function ended(turn) {
  if (turn.state === "stopped") return turn.closed ? "The page was closed before the answer was whole." : "Stopped.";
  if (turn.state === "done" && turn.finish === "length") return "The answer reached the most tokens it may have.";
  if (turn.edited) return "Edited by you.";
  return "";
}

// An answer with a form is JSON; once whole it is shown in lines.
function formed(content) {
  try {
    return `\`\`\`\`json\n${JSON.stringify(JSON.parse(content), null, 2)}\n\`\`\`\``;
  } catch {
    return `\`\`\`\`json\n${content}\n\`\`\`\``;
  }
}

class Reasoning extends Component {
  state = { open: false };

  render({ turn, running }, { open }) {
    const thinking = running && !turn.content && !turn.calls.length;
    return html`
      <details class="reasoning" onToggle=${(event) => this.setState({ open: event.target.open })}>
        <summary class=${classes(thinking && "waiting")}>${thinking ? "Thinking" : "Thoughts"}</summary>
        ${open && html`<${Text} text=${turn.reasoning} />`}
      </details>
    `;
  }
}

class CopyButton extends Component {
  state = { said: "" };

  render({ text }, { said }) {
    const act = async () => {
      this.setState({ said: (await copied(text)) ? "Copied" : "Not copied: the browser forbids it here" });
      setTimeout(() => this.setState({ said: "" }), 1500);
    };
    return html`
      ${iconButton("copy", said || "Copy", act)}
      ${said && html`<span class="said" role="status">${said}</span>`}
    `;
  }
}

// A turn while it is edited. What is typed is kept until it is sent or given up.
class Edit extends Component {
  area = createRef();
  state = { text: draft.get(this.props.turn.id) || this.props.turn.content };

  componentDidMount() {
    this.area.current?.focus();
  }

  type = (event) => {
    draft.set(this.props.turn.id, event.target.value);
    this.setState({ text: event.target.value });
  };

  close = () => {
    const { turn, act } = this.props;
    draft.set(turn.id, "");
    act.edit(null);
  };

  send = (event) => {
    event?.preventDefault();
    const { turn, chats } = this.props;
    const { text } = this.state;
    if (!text.trim() && !turn.files?.length) return;
    this.close();
    if (turn.role === "user") chats.send(text, turn.files, turn.parent);
    else chats.rewrite(turn, text);
  };

  keys = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      this.props.act.edit(null); // what was typed is there when it is edited again
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.send(event);
  };

  render({ turn, chats, act }, { text }) {
    if (turn.role === "tool") {
      const calls = turn.results.map(({ id, name }) => ({ id, name }));
      const send = (_, results) => {
        act.edit(null);
        chats.sendResults(turn.parent, results);
      };
      return html`<${ResultForm} turn=${{ id: turn.id, calls }} send=${send} />
        <button type="button" onClick=${() => act.edit(null)}>Cancel</button>`;
    }
    return html`
      <form class="edit" onSubmit=${this.send}>
        <textarea ref=${this.area} aria-label=${turn.role === "user" ? "Edit this message" : "Edit this answer"}
          rows=${Math.min(16, text.split("\n").length + 2)} value=${text} onInput=${this.type} onKeyDown=${this.keys} />
        <div class="ways">
          <button type="submit" class="primary">${turn.role === "user" ? "Send" : "Save"}</button>
          <button type="button" onClick=${this.close}>Cancel</button>
          <span class="hint">The version before stays.</span>
        </div>
      </form>
    `;
  }
}
