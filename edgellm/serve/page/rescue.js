// Writing to IndexedDB takes time that a page that is closed does not have. What was not confirmed by then is written
// to localStorage, at once, and taken up when the page is opened again.
import { kept } from "./drafts.js";

const NAME = "rescued";
const confirmed = new WeakMap(); // turn: the rev of it that is kept
const writing = new Map(); // conversation: how many writings of it are under way

// Follows a writing of a conversation, a promise, until it is done.
export async function follow(conversation, written) {
  const revs = Object.values(conversation.turns).map((turn) => [turn, turn.rev]);
  writing.set(conversation, (writing.get(conversation) ?? 0) + 1);
  try {
    await written;
    for (const [turn, rev] of revs) confirmed.set(turn, rev);
  } finally {
    if (writing.get(conversation) === 1) writing.delete(conversation);
    else writing.set(conversation, writing.get(conversation) - 1);
  }
}

// These came from where they are kept.
export function areKept(conversation) {
  for (const turn of Object.values(conversation.turns)) confirmed.set(turn, turn.rev);
}

// The page goes away.
export function leave(conversations) {
  const found = [];
  for (const conversation of conversations) {
    const turns = Object.entries(conversation.turns).filter(([, turn]) => confirmed.get(turn) !== turn.rev);
    if (turns.length || writing.has(conversation)) found.push({ ...conversation, turns: Object.fromEntries(turns) });
  }
  if (found.length) kept.set(NAME, found);
}

// What was left, each a conversation with some of its turns; forget() once it is kept elsewhere.
export const left = () => kept.get(NAME, []);
export const forget = () => kept.set(NAME, null);
