// The conversations that are kept here.
import { Component, createRef, html, classes } from "./html.js";
import { found } from "./conversation.js";
import { icon, iconButton } from "./icons.js";
import { exported, imported } from "./transfer.js";

const DAY = 86_400_000;

function age(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  return time >= midnight - 7 * DAY ? "This week" : "Earlier";
}

// props: chats, open(id), act, onTheme(); stamp tells whether anything of the list has changed.
export class Sidebar extends Component {
  picker = createRef();
  state = { wanted: "", naming: null };

  shouldComponentUpdate(next, state) {
    return next.stamp !== this.props.stamp || state !== this.state;
  }

  import = async (event) => {
    const [file] = event.target.files;
    const { chats, act } = this.props;
    try {
      const conversations = imported(await file.text());
      await chats.add(conversations);
      act.tell(`${conversations.length} imported.`);
    } catch (error) {
      act.tell(`${file.name} was not imported: ${error.message}`);
    }
    this.picker.current.value = "";
  };

  remove(conversation) {
    const { chats, act } = this.props;
    chats.remove(conversation.id);
    act.tell(`“${conversation.title}” is deleted.`, { words: "Undo", act: () => chats.keep(conversation) });
  }

  render({ chats, open, onTheme }, { wanted, naming }) {
    const groups = new Map();
    for (const conversation of chats.list) {
      const words = found(conversation, wanted);
      if (words === null) continue;
      const group = age(conversation.changed);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push({ conversation, words });
    }
    return html`
      <div class="brand"><span class="mark" aria-hidden="true" />edgellm</div>
      <button type="button" class="new" onClick=${() => open("")}>${icon("plus")}New conversation</button>
      <label class="search">${icon("search")}
        <input type="search" id="search" aria-label="Search conversations" placeholder="Search" value=${wanted}
          onInput=${(event) => this.setState({ wanted: event.target.value })} />
      </label>
      <nav aria-label="Conversations" tabindex="-1">
        ${Array.from(
          groups,
          ([name, entries]) => html`
          <section key=${name}>
            <h2>${name}</h2>
            <ul>
              ${entries.map(
                ({ conversation, words }) => html`
                <li key=${conversation.id} class=${classes(conversation === chats.current && "current")}>
                  ${naming === conversation.id ? this.nameField(conversation) : this.entry(conversation, words)}
                </li>
              `,
              )}
            </ul>
          </section>
        `,
        )}
        ${!groups.size && html`<p class="hint">${wanted ? "Nothing found." : "Nothing here yet."}</p>`}
      </nav>
      <div class="sidebar-foot">
        <input type="file" accept=".json,application/json" hidden aria-label="File to import"
          ref=${this.picker} onChange=${this.import} />
        ${iconButton("import", "Import conversations", () => this.picker.current.click())}
        ${iconButton("export", "Export all conversations", () => exported(chats.list), { disabled: !chats.all.size })}
        <span class="space" />
        ${iconButton("theme", "Light or dark", onTheme)}
      </div>
    `;
  }

  entry(conversation, words) {
    const { chats, open } = this.props;
    const title = conversation.title || "Without a title";
    const current = conversation === chats.current ? "page" : undefined;
    return html`
      <button type="button" class="entry" aria-current=${current} onClick=${() => open(conversation.id)}>
        <span class="title">${title}</span>
        ${words && html`<span class="words">${words}</span>`}
        ${chats.running.has(conversation.id) && html`<span class="live" role="img" aria-label="Being answered" />`}
      </button>
      <span class="entry-acts">
        ${iconButton("edit", `Rename ${title}`, () => this.setState({ naming: conversation.id }))}
        ${iconButton("export", `Export ${title}`, () => exported([conversation]))}
        ${iconButton("trash", `Delete ${title}`, () => this.remove(conversation))}
      </span>
    `;
  }

  nameField(conversation) {
    const done = (event) => {
      if (this.state.naming !== conversation.id) return;
      this.setState({ naming: null });
      this.props.chats.rename(conversation.id, event.target.value);
    };
    const keys = (event) => {
      if (event.key === "Enter") done(event);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.setState({ naming: null });
    };
    return html`
      <input class="name" aria-label="Name of the conversation" defaultValue=${conversation.title}
        ref=${selected} onBlur=${done} onKeyDown=${keys} />
    `;
  }
}

// A field that appears gets the focus, once.
function selected(input) {
  input?.focus();
  input?.select();
}
