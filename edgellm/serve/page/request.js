// From a conversation to the body of a request.
import { SETTINGS, path, sentTurns } from "./conversation.js";

// What keeps a setting from being sent: {name of the setting: words}. Nothing when all is well.
export function faults(settings) {
  const found = {};
  for (const [name, rule] of Object.entries(NUMBERS)) {
    const text = String(settings[name] ?? "").trim();
    if (text && !rule.holds(Number(text))) found[name] = rule.words;
  }
  try {
    schemaOf(settings.schema);
  } catch (error) {
    found.schema = error.message;
  }
  try {
    toolsOf(settings.tools);
  } catch (error) {
    found.tools = error.message;
  }
  return found;
}

const whole = (least) => (n) => Number.isSafeInteger(n) && n >= least;
const between = (least, most) => (n) => n >= least && n <= most;
export const NUMBERS = {
  temperature: { holds: between(0, 5), words: "A number from 0 to 5." },
  top_p: { holds: between(0, 1), words: "A number from 0 to 1." },
  top_k: { holds: whole(0), words: "A whole number, 0 for all." },
  min_p: { holds: between(0, 1), words: "A number from 0 to 1." },
  max_tokens: { holds: whole(1), words: "A whole number above 0." },
  seed: { holds: whole(0), words: "A whole number." },
};

function json(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is no JSON: ${error.message}`);
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

// The text of a JSON Schema as response_format wants it, {name, schema}; null for none. It may come so wrapped.
export function schemaOf(text) {
  if (!text?.trim()) return null;
  const value = json(text, "The schema");
  if (!isObject(value)) throw new Error("A schema is a JSON object.");
  return isObject(value.schema) && typeof value.name === "string" ? value : { name: "answer", schema: value };
}

// The tools of a JSON text: a list of functions, each bare or in OpenAI's wrapping.
export function toolsOf(text) {
  if (!text?.trim()) return [];
  const value = json(text, "The list of tools");
  const list = Array.isArray(value) ? value : [value];
  return list.map((each) => {
    const tool = isObject(each?.function) ? each.function : each;
    if (typeof tool?.name !== "string" || !tool.name) throw new Error("Every tool needs a name.");
    return { type: "function", function: tool };
  });
}

// A fence that no run of backticks in the text closes.
function fenced(file) {
  const longest = Math.max(2, ...Array.from(file.text.matchAll(/`+/g), (run) => run[0].length));
  const fence = "`".repeat(longest + 1);
  return `${fence}${file.name}\n${file.text}${file.text.endsWith("\n") ? "" : "\n"}${fence}\n\n`;
}

function question(turn) {
  const files = turn.files ?? [];
  const text =
    files
      .filter((file) => file.text !== undefined)
      .map(fenced)
      .join("") + turn.content;
  const pictures = files.filter((file) => file.url);
  if (!pictures.length) return text;
  return [{ type: "text", text }, ...pictures.map((file) => ({ type: "image_url", image_url: { url: file.url } }))];
}

function messagesOf(turn) {
  if (turn.role === "user") return [{ role: "user", content: question(turn) }];
  if (turn.role === "tool") {
    return turn.results.map((result) => ({ role: "tool", tool_call_id: result.id, content: result.content }));
  }
  const message = { role: "assistant", content: turn.content };
  if (turn.reasoning) message.reasoning_content = turn.reasoning;
  if (turn.calls?.length) {
    message.tool_calls = turn.calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return [message];
}

// The request for what comes behind the turns that are seen up to `parent`, or that continues the turn `goesOn`.
export function requestFor(conversation, model, parent, goesOn) {
  const settings = { ...SETTINGS, ...conversation.settings };
  const last = (goesOn ?? parent).id;
  const sent = sentTurns(conversation);
  const turns = sent.some((turn) => turn.id === last) ? sent : path(conversation); // one in front of what is sent
  const messages = turns.slice(0, turns.findIndex((turn) => turn.id === last) + 1).flatMap(messagesOf);
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = {
    model: model.id,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    report: true,
  };
  for (const name of Object.keys(NUMBERS)) {
    if (String(settings[name]).trim()) body[name] = Number(settings[name]);
  }
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  const schema = schemaOf(settings.schema);
  if (schema) body.response_format = { type: "json_schema", json_schema: schema };
  const tools = toolsOf(settings.tools);
  if (tools.length) Object.assign(body, { tools, tool_choice: settings.tool_choice });
  if (settings.thinking && model.capabilities?.includes("thinking")) body.enable_thinking = settings.thinking === "on";
  if (goesOn) body.continue_final_message = true;
  return body;
}
