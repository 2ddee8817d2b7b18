// The page: the conversations at the side, the one that is seen, and where the next message is typed.
import { Component, createRef, html, render, classes } from "./html.js";
import { Chats } from "./chats.js";
import { Composer } from "./composer.js";
import { path, walk } from "./conversation.js";
import { iconButton } from "./icons.js";
import { count, known } from "./numbers.js";
import { Panel } from "./panel.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { nextTheme } from "./themes.js";
import { Turn } from "./turn.js";
import { KeyForm, Notice } from "./ways.js";

const narrow = globalThis.matchMedia("(max-width: 47.99rem)");

class App extends Component {
  state = { drawer: null, editing: null, sidebar: false, told: null, said: "", below: false };
  scroller = createRef();
  composer = createRef();
  following = true; // whether the view goes along with the answer

  act = {
    edit: (turn) => this.setState({ editing: turn?.id ?? null }),
    settings: () => this.setState({ drawer: "settings" }),
    tell: (words, way) => this.tell(words, way),
  };

  componentDidMount() {
    const { chats } = this.props;
    chats.draw = () => this.forceUpdate();
    chats.say = (said) => this.setState({ said });
    addEventListener("pagehide", () => chats.leave());
    addEventListener("keydown", this.keys);
    addEventListener("resize", () => this.follow());
    narrow.addEventListener("change", () => this.setState({ sidebar: false }));
    chats.start();
  }

  componentDidUpdate() {
    const title = this.props.chats.current?.title;
    document.title = title ? `${title} – edgellm` : "edgellm";
    this.follow();
  }

  follow() {
    const box = this.scroller.current;
    if (box && this.following && !this.state.editing) box.scrollTop = box.scrollHeight;
  }

  scrolled = () => {
    const box = this.scroller.current;
    this.following = box.scrollHeight - box.scrollTop - box.clientHeight < 48;
    if (this.state.below === this.following) this.setState({ below: !this.following });
  };

  toEnd = () => {
    this.following = true;
    this.follow();
  };

  keys = (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (this.state.sidebar) this.showSidebar(false);
      else if (event.target.type !== "search") this.props.chats.stop(); // there it empties the field
    } else if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.showSidebar(true);
      document.getElementById("search").focus();
    }
  };

  showSidebar(shown) {
    this.setState({ sidebar: shown && narrow.matches }, () => {
      if (narrow.matches) document.getElementById(shown ? "search" : "sidebar-button").focus();
    });
  }

  tell(words, way) {
    clearTimeout(this.telling);
    this.setState({ told: { words, way } });
    this.telling = setTimeout(() => this.setState({ told: null }), 10_000);
  }

  open = (id) => {
    this.following = true;
    this.setState({ sidebar: false, editing: null });
    this.props.chats.open(id);
  };

  render({ chats }, { drawer, sidebar, said, told, below }) {
    const { current } = chats;
    if (!current) return null;
    const close = () => this.setState({ drawer: null });
    return html`
      <a class="skip" href="#message" onClick=${skip}>Skip to the message</a>
      <aside class=${classes("sidebar", sidebar && "open")} aria-label="All conversations"
        inert=${narrow.matches && !sidebar}>
        <${Sidebar} chats=${chats} open=${this.open} act=${this.act} stamp=${listStamp(chats)}
          onTheme=${() => this.tell(nextTheme())} />
      </aside>
      ${sidebar && html`<div class="veil" onClick=${() => this.showSidebar(false)} />`}
      <div class="page" inert=${sidebar} onDragOver=${(event) => event.preventDefault()} onDrop=${this.drop}>
        <header class="top">
          ${iconButton("menu", "Conversations", () => this.showSidebar(true), { id: "sidebar-button" })}
          <${ModelChoice} chats=${chats} />
          <span class="space" />
          ${iconButton("gauge", "Server", () => this.setState({ drawer: "panel" }))}
          ${iconButton("sliders", "Settings", this.act.settings)}
        </header>
        <main ref=${this.scroller} onScroll=${this.scrolled} onToggleCapture=${() => this.follow()} tabindex="-1">
          <div class="column">
            <h1 class="unseen">${current.title || "New conversation"}</h1>
            ${this.turns(walk(current))}
            ${this.problems()}
          </div>
        </main>
        <div class="bottom">
          ${below && html`<div class="to-end">${iconButton("down", "To the end", this.toEnd)}</div>`}
          <${Composer} ref=${this.composer} chats=${chats} place=${chats.place} act=${this.act} />
        </div>
      </div>
      ${drawer === "settings" && html`<${Settings} chats=${chats} close=${close} act=${this.act} />`}
      ${drawer === "panel" && html`<${Panel} status=${chats.status} close=${close} />`}
      ${told && html`<${Toast} ...${told} close=${() => this.setState({ told: null })} />`}
      <div class="unseen" role="status" aria-live="polite">${told?.words ?? said}</div>
    `;
  }

  drop = (event) => {
    event.preventDefault();
    const files = Array.from(event.dataTransfer.files);
    if (files.length) this.composer.current.attach(files);
  };

  turns(turns) {
    const { chats } = this.props;
    const { editing } = this.state;
    if (!turns.length) return html`<${Welcome} model=${chats.model} />`;
    const busy = Boolean(chats.answering);
    const first = turns.findIndex(({ turn }) => turn.id === chats.current.from);
    return turns.map(({ turn, siblings }, index) => {
      const last = index === turns.length - 1;
      const answering = chats.answering?.turn === turn ? chats.answering : null;
      const seen = { turn, siblings, last, answering, busy, chats, editing: editing === turn.id };
      return html`
        ${index === first && first > 0 && html`<${Unsent} key="unsent" chats=${chats} />`}
        <${Turn} key=${turn.id} ...${seen} stamp=${stampOf(seen)} act=${this.act} />
      `;
    });
  }

  // What keeps the page from working, said where the conversation is.
  problems() {
    const { chats } = this.props;
    const again = () => chats.refresh();
    const retry = html`<button type="button" class="primary" onClick=${again}>Try again</button>`;
    const said = ["failed", "running"].includes(path(chats.current).at(-1)?.state); // or will be, by the answer
    return html`
      ${chats.trouble && !said && html`
        <${Notice} trouble=${chats.trouble}>
          ${chats.trouble.kind === "key" ? html`<${KeyForm} done=${again} />` : retry}
        <//>
      `}
      ${chats.notKept && html`<p class="refused">${chats.notKept}</p>`}
      ${!chats.store.lasting && html`
        <p class="refused">This browser keeps nothing: conversations end with this page. Export what you need.</p>
      `}
    `;
  }
}

// Tells whether anything of a turn has changed.
function stampOf({ turn, siblings, last, answering, busy, editing }) {
  const progress = answering?.progress?.processed;
  return [turn.id, turn.rev, turn.state, siblings.length, last, busy, editing, progress, Boolean(answering)].join();
}

// Tells whether anything of the list of conversations has.
const listStamp = ({ list, current, running }) =>
  [current.id, ...list.map(({ id, title, changed }) => [id, title, changed, running.has(id)])].join();

// way: {words, act()}, something that can be done about it.
function Toast({ words, way, close }) {
  const act = () => {
    way.act();
    close();
  };
  return html`
    <div class="toast">
      <span>${words}</span>
      ${way && html`<button type="button" onClick=${act}>${way.words}</button>`}
    </div>
  `;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("message").focus();
}

function ModelChoice({ chats }) {
  if (!chats.models.length) return html`<span class="hint">${chats.trouble ? "No models" : ""}</span>`;
  const gone = chats.current.model && !chats.models.some((model) => model.id === chats.current.model);
  const title = gone ? `${chats.current.model} is not there any more` : undefined;
  const choose = (event) => chats.choose(event.target.value);
  return html`
    <select class="model" aria-label="Model" value=${chats.model.id} onChange=${choose} title=${title}>
      ${chats.models.map((model) => html`<option key=${model.id} value=${model.id}>${model.id}</option>`)}
    </select>
  `;
}

const Unsent = ({ chats }) => html`
  <p class="unsent">
    <span>What is above is not sent.</span>
    <button type="button" onClick=${() => chats.sendAll()}>Send it again</button>
  </p>
`;

const reads = (model) => (known(model.context_length) ? ` reads up to ${count(model.context_length)} tokens` : "");

const Welcome = ({ model }) => html`
  <div class="welcome">
    <span class="mark" aria-hidden="true" />
    <p class="greeting">What would you like to know?</p>
    ${model && html`<p class="hint">${model.id}${reads(model)}</p>`}
    <p class="hint">Answers come from your own server. Conversations stay in this browser.</p>
  </div>
`;

const store = await Store.open();
render(
  html`<${App} chats=${new Chats(
    store,
    () => {},
    () => {},
  )} />`,
  document.getElementById("app"),
);
