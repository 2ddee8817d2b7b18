// All conversations of this browser, which one is seen, and the answers under way.
import * as api from "./api.js";
import { Answering } from "./answering.js";
import { addTurn, laterStart, merged, newConversation, path, touch } from "./conversation.js";
import { draft, kept } from "./drafts.js";
import * as rescue from "./rescue.js";
import { faults, requestFor } from "./request.js";
import { trouble } from "./trouble.js";

export class Chats {
  // draw() is called whenever something that is seen has changed; say(text) tells those who do not see.
  constructor(store, draw, say) {
    this.store = store;
    this.draw = draw;
    this.say = say;
    this.all = new Map();
    this.running = new Map(); // id of a conversation: its Answering
    this.current = null;
    this.models = [];
    this.status = null;
    this.trouble = null; // why the list of models is not there
  }

  async start() {
    for (const conversation of await this.store.all()) this.all.set(conversation.id, conversation);
    this.all.forEach(rescue.areKept);
    for (const left of rescue.left()) {
      const here = this.all.get(left.id);
      await this.keep(here ? merged(left, here) : left);
    }
    if (!this.notKept) rescue.forget();
    this.all.forEach(interrupted);
    this.current = this.all.get(kept.get("current", "")) ?? this.fresh();
    this.store.onChange((id) => this.changedElsewhere(id));
    this.draw();
    await this.refresh();
  }

  // A new conversation, which is kept from its first turn on. Its draft is the one draft of new conversations.
  fresh() {
    return newConversation(kept.get("new", null) ?? kept.get("defaults", {}), kept.get("model", ""));
  }

  async refresh() {
    try {
      const [models, status] = await Promise.all([api.models(), api.status().catch(() => null)]);
      this.status = status;
      const said = new Map((status?.models ?? []).map((model) => [model.id, model]));
      this.models = models.map((model) => ({ ...model, ...said.get(model.id) })).filter(answers);
      this.trouble = null;
    } catch (error) {
      this.trouble = error.data ?? trouble("server", String(error)).data;
    }
    this.draw();
  }

  get model() {
    return this.modelOf(this.current);
  }

  modelOf(conversation) {
    const named = this.models.find((model) => model.id === conversation.model);
    return named ?? this.models.find((model) => model.loaded) ?? this.models[0];
  }

  choose(id) {
    this.current.model = id;
    kept.set("model", id);
    this.settled();
  }

  set(name, value) {
    this.current.settings[name] = value;
    this.settled();
  }

  // What was set is kept with the conversation, or for the one that begins next.
  settled() {
    if (this.all.has(this.current.id)) this.keep(this.current);
    else kept.set("new", this.current.settings);
    this.draw();
  }

  rename(id, title) {
    const conversation = this.all.get(id);
    Object.assign(conversation, { title: title.trim() || conversation.title, named: true });
    return this.keep(conversation);
  }

  // Shows another branch behind a turn's parent.
  see(turn) {
    this.current.chosen[turn.parent] = turn.id;
    return this.keep(this.current);
  }

  sendAll() {
    this.current.from = "";
    return this.keep(this.current);
  }

  // Conversations from a file beside those that are here.
  async add(conversations) {
    for (const each of conversations) {
      const here = this.all.get(each.id);
      await this.keep(here ? Object.assign(here, merged(here, each)) : each);
    }
  }

  get list() {
    return Array.from(this.all.values()).sort((a, b) => b.changed - a.changed);
  }

  get answering() {
    return this.running.get(this.current.id);
  }

  // Where the draft of the conversation that is seen is kept.
  get place() {
    return this.all.has(this.current.id) ? this.current.id : "new";
  }

  open(id) {
    this.current = this.all.get(id) ?? this.fresh();
    kept.set("current", id);
    this.draw();
  }

  async keep(conversation) {
    this.all.set(conversation.id, conversation);
    this.draw();
    try {
      await rescue.follow(conversation, this.store.put(conversation));
    } catch (error) {
      this.notKept = `This browser could not keep the conversation: ${error.message}`;
      this.draw();
    }
  }

  async remove(id) {
    this.running.get(id)?.stop();
    this.all.delete(id);
    if (this.current.id === id) this.open("");
    this.draw();
    await this.store.delete(id);
  }

  async changedElsewhere(id) {
    const there = await this.store.get(id);
    if (!there) {
      if (this.current.id !== id) this.all.delete(id);
    } else if (this.all.has(id)) {
      const here = this.all.get(id);
      const { turns, chosen } = merged(here, there); // each window looks at the branch that it looks at
      Object.assign(here, there, { turns, chosen });
    } else this.all.set(id, there);
    if (there) rescue.areKept(there);
    this.draw();
  }

  // Sends what was typed as a turn behind the last one, or behind `parent`; the answer begins.
  send(content, files, parent = path(this.current).at(-1)?.id ?? "") {
    if (this.answering) return undefined;
    const conversation = this.current;
    const settled = this.place;
    const turn = addTurn(conversation, parent, { role: "user", content, files });
    draft.set(settled, "");
    if (settled === "new") kept.set("new", null);
    kept.set("current", conversation.id);
    return this.answerTo(conversation, turn);
  }

  sendResults(parent, results) {
    if (this.answering) return undefined;
    const turn = addTurn(this.current, parent, { role: "tool", results });
    return this.answerTo(this.current, turn);
  }

  // Another answer to what is in front of this one; one in which nothing came is replaced.
  again(turn) {
    if (this.answering) return undefined; // asked twice in haste
    const parent = this.current.turns[turn.parent];
    if (turn.content || turn.reasoning || turn.calls?.length) return this.answerTo(this.current, parent);
    return this.run(this.current, Object.assign(turn, blank()), parent);
  }

  answerTo(conversation, parent) {
    const turn = addTurn(conversation, parent.id, { role: "assistant", ...blank() });
    return this.run(conversation, turn, parent);
  }

  goOn(turn) {
    if (this.answering) return undefined;
    Object.assign(turn, { state: "running", trouble: null, finish: null });
    return this.run(this.current, turn, null, turn);
  }

  // An answer as the user wants it to read, beside the one that came.
  rewrite(turn, content) {
    const { reasoning, model } = turn;
    const written = { content, reasoning, model, state: "done", edited: true };
    addTurn(this.current, turn.parent, { role: "assistant", ...blank(), ...written });
    return this.keep(this.current);
  }

  // Leaves the earlier half of the conversation out of what is sent, and asks again.
  shorten(turn) {
    this.current.from = laterStart(this.current) ?? this.current.from;
    return this.again(turn);
  }

  stop() {
    this.answering?.stop();
  }

  async run(conversation, turn, parent, goesOn) {
    const answering = new Answering(conversation, turn, {
      changed: () => this.soon(),
      save: () => this.all.has(conversation.id) && this.keep(conversation),
    });
    this.running.set(conversation.id, answering);
    turn.form = Boolean(conversation.settings.schema?.trim());
    touch(turn);
    this.keep(conversation);
    await answering.run(async () => requestFor(conversation, await this.modelFor(conversation, turn), parent, goesOn));
    this.running.delete(conversation.id);
    conversation.changed = Date.now();
    if (this.all.has(conversation.id)) await this.keep(conversation);
    this.say(spoken(turn));
  }

  // The model that answers, once the server has said which there are and the settings can be sent.
  async modelFor(conversation, turn) {
    if (!this.models.length) await this.refresh();
    const model = this.modelOf(conversation);
    if (!model) throw this.trouble ? trouble(this.trouble.kind, this.trouble.detail) : trouble("model", "It has none.");
    const wrong = Object.entries(faults(conversation.settings));
    if (wrong.length) throw trouble("settings", wrong.map(([name, words]) => `${name}: ${words}`).join(" "));
    turn.model = model.id;
    return model;
  }

  // Draws with the next frame, however many chunks come until then.
  soon() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = undefined;
      this.draw();
    });
  }

  // The page goes away.
  leave() {
    rescue.leave(this.all.values());
  }
}

const blank = () => ({
  content: "",
  reasoning: "",
  calls: [],
  state: "running",
  finish: null,
  trouble: null,
  usage: null,
  report: null,
  firstAfter: null,
});

// Models that answer; those of which nothing is known may.
const answers = ({ capabilities }) =>
  !capabilities || ["chat", "completion"].some((each) => capabilities.includes(each));

// What was under way when the page was closed is not any more.
function interrupted(conversation) {
  for (const turn of Object.values(conversation.turns)) {
    if (turn.state === "running") Object.assign(turn, { state: "stopped", closed: true });
  }
}

function spoken(turn) {
  if (turn.state === "failed") return turn.trouble.message;
  if (turn.state === "stopped") return "Stopped.";
  if (turn.calls.length) return `The model calls ${turn.calls.map((call) => call.name).join(", ")}.`;
  return `The answer is here: ${turn.content.slice(0, 200)}`;
}
