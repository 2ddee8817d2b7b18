// The server: its addresses, and the key, which is kept for this tab alone.
import { events } from "./stream.js";
import { Trouble, refusal, trouble } from "./trouble.js";

const ROOT = new URL("../v1/", import.meta.url);
const KEY = "edgellm.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw trouble("lost", "Nobody answers at its address.");
  }
  if (response.ok) return response;
  throw refusal(response.status, await response.json().catch(() => null), Boolean(key.get()));
}

export const models = async () => (await (await ask("models")).json()).data ?? [];
export const status = async () => (await ask("edgellm/status")).json();

// The chunks of an answer. Aborting the signal closes the connection, which stops the answer.
export async function* answer(body, signal) {
  try {
    const headers = { "Content-Type": "application/json" };
    yield* events(await ask("chat/completions", { method: "POST", headers, signal, body: JSON.stringify(body) }));
  } catch (error) {
    if (signal.aborted || error instanceof Trouble) throw error;
    throw trouble("lost"); // what a broken connection raises differs between browsers
  }
}
