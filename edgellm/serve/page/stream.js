// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as answers use them.
import { trouble } from "./trouble.js";

const SILENCE = 60_000; // ms without a byte, heartbeats included, after which the connection counts as lost

// The data of each event of a response's body, parsed as JSON, up to [DONE].
// A body that ends before that, or is silent for too long, is a lost connection.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await heard(reader);
      if (done) throw trouble("lost");
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // comments keep the connection alive, and blank lines end events
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw trouble("server", "It sent something that is no JSON.");
  }
}

async function heard(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(trouble("lost", "Nothing came for a minute.")), SILENCE);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}
