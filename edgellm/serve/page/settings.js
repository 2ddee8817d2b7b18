// What shapes the answers of a conversation.
import { html } from "./html.js";
import { key } from "./api.js";
import { kept } from "./drafts.js";
import { Drawer } from "./drawer.js";
import { faults } from "./request.js";

const SAMPLING = [
  ["temperature", "Temperature", "0 always takes the likeliest token"],
  ["top_p", "Top p", "Keep the likeliest tokens up to this sum"],
  ["top_k", "Top k", "Keep so many of the likeliest tokens"],
  ["min_p", "Min p", "Drop tokens below this part of the likeliest"],
  ["max_tokens", "Most tokens", "Where an answer is cut"],
  ["seed", "Seed", "The same seed gives the same answer"],
];

const THINKING = [
  ["", "As the model does by itself"],
  ["on", "On"],
  ["off", "Off"],
];
const TOOL_CHOICE = [
  ["auto", "When it helps"],
  ["required", "Always"],
  ["none", "Never"],
];

export function Settings({ chats, close, act }) {
  const { settings } = chats.current;
  const wrong = faults(settings);
  const field = { settings, wrong, set: (name, value) => chats.set(name, value) };
  const keepAsUsual = () => {
    kept.set("defaults", settings);
    act.tell("New conversations begin with these settings.");
  };
  const forget = () => {
    key.set("");
    act.tell("The key is forgotten.");
  };
  return html`
    <${Drawer} title="Settings" close=${close}>
      <p class="hint">They belong to this conversation.</p>
      <${Area} ...${field} name="system" label="System prompt" rows="4" placeholder="How the model should behave" />
      ${chats.model?.capabilities?.includes("thinking") && html`
        <${Choice} ...${field} name="thinking" label="Thinking" options=${THINKING} />
      `}
      <fieldset>
        <legend>Sampling</legend>
        <div class="grid">
          ${SAMPLING.map(([name, label, hint]) => html`<${Line} ...${field} ...${{ name, label, hint }} />`)}
        </div>
        <${Area} ...${field} name="stop" label="Stop at" rows="2" code placeholder="One text a line" />
      </fieldset>
      <fieldset>
        <legend>Form</legend>
        <${Area} ...${field} name="schema" label="JSON schema" rows="6" code
          placeholder=${'{"type": "object", "properties": {…}}'}
          hint="Answers are then JSON of this schema, always." />
      </fieldset>
      <fieldset>
        <legend>Tools</legend>
        <${Area} ...${field} name="tools" label="Tools, as JSON" rows="6" code
          placeholder=${'[{"name": "weather", "parameters": {…}}]'}
          hint="The model may call them; you type what they return." />
        ${settings.tools.trim() && html`
          <${Choice} ...${field} name="tool_choice" label="Use of tools" options=${TOOL_CHOICE} />
        `}
      </fieldset>
      <div class="ways">
        <button type="button" onClick=${keepAsUsual}>Use for new conversations</button>
        ${key.get() && html`<button type="button" onClick=${forget}>Forget the key</button>`}
      </div>
    <//>
  `;
}

// What is said below a field: what is wrong, or what it is for.
const below = (name, wrong, hint) => html`
  <span id=${`about-${name}`} class=${wrong[name] ? "fault" : "hint"}>${wrong[name] ?? hint}</span>
`;

const about = (name, wrong) => ({ "aria-describedby": `about-${name}`, "aria-invalid": Boolean(wrong[name]) });

function Line({ settings, wrong, set, name, label, hint }) {
  return html`
    <div class="field">
      <label for=${`set-${name}`}>${label}</label>
      <input id=${`set-${name}`} inputmode="decimal" autocomplete="off" placeholder="usual" value=${settings[name]}
        onInput=${(event) => set(name, event.target.value)} ...${about(name, wrong)} />
      ${below(name, wrong, hint)}
    </div>
  `;
}

function Area({ settings, wrong, set, name, label, hint, rows, code, placeholder }) {
  return html`
    <div class="field">
      <label for=${`set-${name}`}>${label}</label>
      <textarea id=${`set-${name}`} rows=${rows} class=${code && "code-input"} spellcheck=${!code}
        placeholder=${placeholder} value=${settings[name]} onInput=${(event) => set(name, event.target.value)}
        ...${about(name, wrong)} />
      ${below(name, wrong, hint)}
    </div>
  `;
}

function Choice({ settings, set, name, label, options }) {
  return html`
    <div class="field">
      <label for=${`set-${name}`}>${label}</label>
      <select id=${`set-${name}`} value=${settings[name]} onChange=${(event) => set(name, event.target.value)}>
        ${options.map(([value, words]) => html`<option key=${value} value=${value}>${words}</option>`)}
      </select>
    </div>
  `;
}
