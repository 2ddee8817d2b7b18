// What can go wrong, in words, and which way leads on.

// kind: key, busy, long, model, settings, refused, lost, server. Turns keep it as plain data: {kind, message, detail}.
export class Trouble extends Error {
  constructor(kind, message, detail = "") {
    super(message);
    this.kind = kind;
    this.detail = detail;
  }

  get data() {
    return { kind: this.kind, message: this.message, detail: this.detail };
  }
}

const WORDS = {
  key: "This server asks for a key.",
  wrong: "The server does not accept this key.",
  busy: "The server is busy with other requests.",
  long: "The conversation is longer than this model can read.",
  model: "The server does not have this model.",
  settings: "The settings of this conversation cannot be sent.",
  refused: "The server did not accept the request.",
  lost: "The connection to the server was lost.",
  server: "The server could not finish the answer.",
};

export const trouble = (kind, detail = "") => new Trouble(kind, WORDS[kind], detail);

// The trouble that an answer of status 400 and above, with this body, stands for; whether it came in spite of a key.
export function refusal(status, body, withKey) {
  const error = body?.error ?? {};
  const detail = typeof error.message === "string" ? error.message : `Status ${status}`;
  if (status === 401) return new Trouble("key", WORDS[withKey ? "wrong" : "key"], detail);
  if (status === 429 || status === 503) return trouble("busy", detail);
  if (error.code === "context_length_exceeded") return trouble("long", detail);
  if (status === 404) return trouble("model", detail);
  return trouble(status < 500 ? "refused" : "server", detail);
}

// The trouble of an error that came in the midst of an answer.
export function broken(error) {
  if (error?.code === "context_length_exceeded") return trouble("long", String(error.message ?? ""));
  return trouble("server", String(error?.message ?? ""));
}
