// Where a message is typed. What is typed and attached is kept until it is sent.
import { Component, createRef, html } from "./html.js";
import { draft, kept } from "./drafts.js";
import { attached } from "./files.js";
import { icon, iconButton } from "./icons.js";
import { toolsOf } from "./request.js";

const touch = globalThis.matchMedia("(hover: none) and (pointer: coarse)");

// props: chats, place (where its draft is kept), act
export class Composer extends Component {
  area = createRef();
  picker = createRef();
  state = this.opened(this.props.place);

  opened(place) {
    return { text: draft.get(place), files: kept.get(`files.${place}`, []), refused: [] };
  }

  componentDidMount() {
    this.grow();
    if (!touch.matches) this.area.current.focus();
  }

  componentDidUpdate(before) {
    if (before.place !== this.props.place) {
      this.setState(this.opened(this.props.place));
      if (!touch.matches) this.area.current.focus();
    }
    this.grow();
  }

  grow() {
    const area = this.area.current;
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
  }

  type = (event) => {
    draft.set(this.props.place, event.target.value);
    this.setState({ text: event.target.value });
  };

  setFiles(files, refused) {
    if (!kept.set(`files.${this.props.place}`, files.length ? files : null)) {
      refused = [...refused, "These files are too large to be kept when the page is closed. Send them before."];
    }
    this.setState({ files, refused });
  }

  remove(file) {
    this.setFiles(
      this.state.files.filter((each) => each !== file),
      [],
    );
  }

  attach = async (list) => {
    const [files, refused] = [[], []];
    for (const file of list) {
      try {
        files.push(await attached(file, this.props.chats.model));
      } catch (error) {
        refused.push(error.message);
      }
    }
    this.setFiles([...this.state.files, ...files], refused);
    if (refused.length) this.props.chats.say(refused.join(" "));
    this.area.current.focus();
  };

  picked = async (event) => {
    await this.attach(Array.from(event.target.files));
    this.picker.current.value = "";
  };

  paste = (event) => {
    const files = Array.from(event.clipboardData.files);
    if (!files.length) return;
    event.preventDefault();
    this.attach(files);
  };

  send = (event) => {
    event?.preventDefault();
    const { chats, place } = this.props;
    const { text, files } = this.state;
    if (chats.answering) {
      chats.say("An answer is on its way. Escape stops it.");
      return;
    }
    if (!text.trim() && !files.length) return;
    kept.set(`files.${place}`, null);
    this.setState({ text: "", files: [], refused: [] });
    chats.send(text, files);
    this.area.current.focus();
  };

  keys = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    if (touch.matches && !event.ctrlKey && !event.metaKey) return; // there Enter is the only way to a new line
    this.send(event);
  };

  render({ chats, act }, { text, files, refused }) {
    return html`
      <form class="composer" id="composer" onSubmit=${this.send}>
        ${refused.map((words) => html`<p class="refused" key=${words}>${words}</p>`)}
        ${files.length > 0 && html`
          <ul class="chips" aria-label="Attached files">
            ${files.map(
              (file, index) => html`
              <li key=${index}>${icon("file")}<span>${file.name}</span>
                ${iconButton("close", `Remove ${file.name}`, () => this.remove(file))}
              </li>
            `,
            )}
          </ul>
        `}
        <textarea ref=${this.area} id="message" rows="1" aria-label="Message" placeholder="Ask something"
          value=${text} onInput=${this.type} onKeyDown=${this.keys} onPaste=${this.paste} />
        <div class="composer-row">
          <input type="file" multiple hidden aria-label="Files" ref=${this.picker} onChange=${this.picked} />
          ${iconButton("attach", "Attach files", () => this.picker.current.click())}
          <${InForce} settings=${chats.current.settings} open=${act.settings} />
          <span class="space" />
          ${chats.answering ? stopButton(chats) : sendButton(!text.trim() && !files.length)}
        </div>
      </form>
    `;
  }
}

const stopButton = (chats) => html`
  <button type="button" class="round" aria-label="Stop" title="Stop (Esc)" onClick=${() => chats.stop()}>
    ${icon("stop")}
  </button>
`;

const sendButton = (disabled) => html`
  <button type="submit" class="round primary" aria-label="Send" title="Send (Enter)" disabled=${disabled}>
    ${icon("send")}
  </button>
`;

// Which settings shape the next answer, in a word each.
function InForce({ settings, open }) {
  const words = [];
  if (settings.system.trim()) words.push("System prompt");
  if (settings.schema.trim()) words.push("JSON schema");
  const tools = toolCount(settings.tools);
  if (tools) words.push(tools);
  return words.map((each) => html`<button type="button" key=${each} class="tag" onClick=${open}>${each}</button>`);
}

function toolCount(text) {
  try {
    const { length } = toolsOf(text);
    return length && `${length} ${length === 1 ? "tool" : "tools"}`;
  } catch {
    return "Tools";
  }
}
