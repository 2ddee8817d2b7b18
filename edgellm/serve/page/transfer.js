// Conversations in a JSON file, out and in.
import { SETTINGS } from "./conversation.js";

const FORMAT = "edgellm-conversations";

// Lets the browser save a file of conversations.
export function exported(conversations) {
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const title = conversations.length === 1 ? conversations[0].title : "conversations";
  const what = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  link.download = `edgellm-${what || "conversation"}-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// The conversations of such a file. It may come from anybody: nothing but what conversations are made of is taken.
export function imported(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("it is no JSON.");
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations)) {
    throw new Error("it holds no conversations of edgellm.");
  }
  if (value.version !== 1) throw new Error("it was written by a later version.");
  return value.conversations.map(conversation);
}

const ID = /^[a-z0-9][a-z0-9-]{0,63}$/i;
const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,[a-z0-9+/=]+$/i;
const STATES = ["done", "stopped", "failed"];

const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : 0);
const list = (value) => (Array.isArray(value) ? value : []);

function id(value) {
  if (typeof value !== "string" || !ID.test(value)) throw new Error("a conversation in it is damaged.");
  return value;
}

function conversation(value) {
  const turns = {};
  for (const each of Object.values(value?.turns ?? {})) turns[id(each?.id)] = turn(each);
  checkParents(turns);
  const chosen = {};
  for (const [parent, child] of Object.entries(value.chosen ?? {})) {
    if ((parent === "" || ID.test(parent)) && Object.hasOwn(turns, child)) chosen[parent] = child;
  }
  const settings = { ...SETTINGS };
  for (const name of Object.keys(SETTINGS)) settings[name] = string(value.settings?.[name]) || settings[name];
  return {
    id: id(value.id),
    title: string(value.title),
    named: value.named === true,
    created: number(value.created),
    changed: number(value.changed),
    model: string(value.model),
    settings,
    turns,
    chosen,
    from: Object.hasOwn(turns, value.from) ? value.from : "",
  };
}

// Every turn must lead back to the beginning.
function checkParents(turns) {
  for (const turn of Object.values(turns)) {
    const seen = new Set();
    for (let at = turn; at.parent !== ""; at = turns[at.parent]) {
      if (seen.has(at.id) || !Object.hasOwn(turns, at.parent)) throw new Error("a conversation in it is damaged.");
      seen.add(at.id);
    }
  }
}

function turn(value) {
  if (!["user", "assistant", "tool"].includes(value.role)) throw new Error("a conversation in it is damaged.");
  const taken = {
    id: value.id,
    parent: value.parent === "" ? "" : id(value.parent),
    role: value.role,
    at: number(value.at),
    rev: number(value.rev),
    content: string(value.content),
  };
  if (value.role === "user") taken.files = list(value.files).map(file).filter(Boolean);
  if (value.role === "tool")
    taken.results = list(value.results).map((each) => strings(each, ["id", "name", "content"]));
  if (value.role !== "assistant") return taken;
  return {
    ...taken,
    reasoning: string(value.reasoning),
    calls: list(value.calls).map((each) => strings(each, ["id", "name", "arguments"])),
    state: STATES.includes(value.state) ? value.state : "stopped",
    finish: string(value.finish) || null,
    trouble: value.state === "failed" ? strings(value.trouble, ["kind", "message", "detail"]) : null,
    model: string(value.model),
    form: value.form === true,
    edited: value.edited === true,
    usage: value.usage ? numbers(value.usage) : null,
    report: report(value.report),
    firstAfter: null,
  };
}

function file(value) {
  const name = string(value?.name);
  if (typeof value?.text === "string") return { name, text: value.text };
  return PICTURE.test(string(value?.url)) ? { name, url: value.url } : null;
}

const strings = (value, names) => Object.fromEntries(names.map((name) => [name, string(value?.[name])]));
const numbers = (value) => Object.fromEntries(Object.entries(value).filter(([, each]) => Number.isFinite(each)));

function report(value) {
  if (!value?.cache || !value.timings) return null;
  return { cache: { ...numbers(value.cache), reason: string(value.cache.reason) }, timings: numbers(value.timings) };
}
