// A conversation: a tree of turns. Editing or answering again adds a branch; nothing is taken away.
//
// {id, title, named, created, changed, model, settings, turns: {id: turn}, chosen: {parent: id}, from}
// chosen says which child of a turn is seen ("" is the parent of the first ones); from is the first turn that is sent.
//
// A turn: {id, parent, role, at, rev, content, files, reasoning, calls, results, state, …}
// role: user, assistant or tool, whose results are those of the calls in its parent. state, of an assistant's:
// running, done, stopped, failed. rev counts changes: of two copies of a turn the one that has more is newer.

// Where the page comes without https from another machine, there is no randomUUID.
const randomId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");
export const newId = () => crypto.randomUUID?.() ?? randomId();

export const SETTINGS = {
  system: "",
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  max_tokens: "",
  seed: "",
  stop: "",
  schema: "",
  tools: "",
  tool_choice: "auto",
  thinking: "",
};

export function newConversation(settings = {}, model = "") {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    named: false,
    created: now,
    changed: now,
    model,
    settings: { ...SETTINGS, ...settings },
    turns: {},
    chosen: {},
    from: "",
  };
}

// Adds a turn behind a parent ("" for the first) and makes it the one that is seen.
export function addTurn(conversation, parent, turn) {
  const added = { id: newId(), parent, at: Date.now(), rev: 0, content: "", ...turn };
  conversation.turns[added.id] = added;
  conversation.chosen[parent] = added.id;
  conversation.changed = Date.now();
  if (!conversation.named && turn.role === "user") conversation.title ||= titleOf(turn);
  return added;
}

function titleOf(turn) {
  const line = turn.content.trim().split("\n", 1)[0] || (turn.files ?? []).map((file) => file.name).join(", ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

export function touch(turn) {
  turn.rev += 1;
}

const older = (a, b) => a.at - b.at || (a.id < b.id ? -1 : 1);

// The turns that are seen, the first one first, each as {turn, siblings}: those in its place, the oldest first.
export function walk(conversation) {
  const byParent = new Map();
  for (const turn of Object.values(conversation.turns)) {
    if (!byParent.has(turn.parent)) byParent.set(turn.parent, []);
    byParent.get(turn.parent).push(turn);
  }
  const seen = [];
  let at = "";
  while (byParent.has(at)) {
    const siblings = byParent.get(at).sort(older);
    const turn = siblings.find((each) => each.id === conversation.chosen[at]) ?? siblings.at(-1);
    seen.push({ turn, siblings });
    at = turn.id;
  }
  return seen;
}

export const path = (conversation) => walk(conversation).map(({ turn }) => turn);

// Those of them that are sent: all from the one where sending begins.
export function sentTurns(conversation) {
  const turns = path(conversation);
  const first = turns.findIndex((turn) => turn.id === conversation.from);
  return first < 0 ? turns : turns.slice(first);
}

// Where the second half of what is sent begins, or null when only one question is.
export function laterStart(conversation) {
  const questions = sentTurns(conversation).filter((turn) => turn.role === "user");
  return questions.length < 2 ? null : questions[Math.ceil(questions.length / 2)].id;
}

// Two copies of a conversation as one: no turn is lost, the newer copy of each counts; all else is mine.
export function merged(mine, theirs) {
  const turns = { ...mine.turns };
  for (const turn of Object.values(theirs.turns)) {
    if (!(turn.id in turns) || turns[turn.id].rev < turn.rev) turns[turn.id] = turn;
  }
  return { ...mine, turns, chosen: { ...theirs.chosen, ...mine.chosen } };
}

// Where a conversation holds a text, in any branch: its title, "" or a few words around it. null when it does not.
export function found(conversation, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted || conversation.title.toLowerCase().includes(wanted)) return "";
  for (const turn of Object.values(conversation.turns)) {
    const at = turn.content.toLowerCase().indexOf(wanted);
    if (at >= 0) {
      const begin = Math.max(0, at - 24);
      return (begin ? "…" : "") + turn.content.slice(begin, at + wanted.length + 40).replace(/\s+/g, " ");
    }
  }
  return null;
}
