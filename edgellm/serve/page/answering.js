// One answer on its way in: what the server sends becomes part of a turn.
import { answer } from "./api.js";
import { touch } from "./conversation.js";
import { Trouble, broken, trouble } from "./trouble.js";

const SAVE = 400; // ms between two savings of a partial answer

export class Answering {
  // turn: the assistant's, already in the conversation. changed() when it is to be drawn, save() when it is to be kept.
  constructor(conversation, turn, { changed, save }) {
    this.conversation = conversation;
    this.turn = turn;
    this.changed = changed;
    this.save = save;
    this.progress = null; // {total, cache, processed} while the prompt is read
    this.controller = new AbortController();
    this.begun = performance.now();
    this.saved = this.begun;
  }

  stop() {
    this.controller.abort();
  }

  // body(): a promise of the request.
  async run(body) {
    const turn = this.turn;
    try {
      for await (const chunk of answer(await body(), this.controller.signal)) this.take(chunk);
      turn.state = "done";
    } catch (error) {
      if (this.controller.signal.aborted) turn.state = "stopped";
      else {
        turn.state = "failed";
        turn.trouble = (error instanceof Trouble ? error : trouble("server", String(error))).data;
      }
    }
    this.progress = null;
    touch(turn);
  }

  take(chunk) {
    const turn = this.turn;
    if (chunk.error) throw broken(chunk.error);
    if (chunk.prompt_progress) this.progress = chunk.prompt_progress;
    if (chunk.usage) turn.usage = chunk.usage;
    if (chunk.edgellm) turn.report = chunk.edgellm;
    const choice = chunk.choices?.[0];
    if (choice) this.add(choice.delta ?? {});
    if (choice?.finish_reason) turn.finish = choice.finish_reason;
    touch(turn);
    this.changed();
    if (performance.now() - this.saved > SAVE) {
      this.saved = performance.now();
      this.save();
    }
  }

  add(delta) {
    const turn = this.turn;
    if (delta.content || delta.reasoning_content || delta.tool_calls?.length) {
      this.progress = null;
      turn.firstAfter ??= performance.now() - this.begun;
    }
    if (delta.content) turn.content += delta.content;
    if (delta.reasoning_content) turn.reasoning = (turn.reasoning ?? "") + delta.reasoning_content;
    for (const part of delta.tool_calls ?? []) {
      turn.calls ??= [];
      const call = (turn.calls[part.index] ??= { id: "", name: "", arguments: "" });
      if (part.id) call.id = part.id;
      if (part.function?.name) call.name += part.function.name;
      if (part.function?.arguments) call.arguments += part.function.arguments;
    }
  }
}
