// What an answer took: its speed, and where its prompt came from.
import { html } from "./html.js";
import { count, known, plural, seconds } from "./numbers.js";

const SOURCES = [
  ["from_live", "live", "still in the running model"],
  ["from_memory", "memory", "kept in memory"],
  ["from_disk", "disk", "read from disk"],
  ["computed", "computed", "computed now"],
];

export function Report({ turn }) {
  const { cache, timings } = turn.report ?? {};
  const first = timings?.ttft_ms ?? turn.firstAfter;
  const parts = [];
  if (known(timings?.decode_tokens_per_second)) parts.push(perSecond(timings.decode_tokens_per_second));
  if (known(first)) parts.push(`first token after ${seconds(first)}`);
  if (cache) parts.push(`prompt: ${sources(cache)}`);
  else if (turn.usage) parts.push(`prompt: ${plural(turn.usage.prompt_tokens, "token")}`);
  if (!parts.length) return null;
  return html`
    <details class="report">
      <summary title=${reason(cache)}>${parts.join(" · ")}</summary>
      ${cache && html`<${Sources} cache=${cache} />`}
      <dl>
        ${row("Answer", turn.usage && plural(turn.usage.completion_tokens, "token"))}
        ${row("Answer written in", known(timings?.decode_ms) && seconds(timings.decode_ms))}
        ${row("Prompt read in", known(timings?.prefill_ms) && seconds(timings.prefill_ms))}
        ${row("Prompt speed", perSecond(timings?.prefill_tokens_per_second))}
      </dl>
    </details>
  `;
}

const perSecond = (rate) => known(rate) && `${count(rate)} tokens/s`;

const sources = (cache) =>
  SOURCES.filter(([key]) => cache[key])
    .map(([key, name]) => `${count(cache[key])} ${name}`)
    .join(", ") || "0";

const row = (name, value) => value && html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

function reason(cache) {
  if (!cache) return "";
  return cache.reason || (cache.computed ? "" : "Nothing of the prompt had to be computed.");
}

function Sources({ cache }) {
  const shown = SOURCES.filter(([key]) => cache[key] > 0);
  return html`
    <div class="sources" aria-hidden="true">
      ${shown.map(([key]) => html`<span key=${key} class=${key} style=${{ flexGrow: cache[key] }} />`)}
    </div>
    <ul class="legend">
      ${shown.map(
        ([key, , words]) => html`
        <li key=${key}><span class=${`dot ${key}`} />${plural(cache[key], "token")} ${words}</li>
      `,
      )}
    </ul>
    ${reason(cache) && html`<p class="reason">${reason(cache)}</p>`}
    ${known(cache.broke_at) && (cache.expected || cache.found) && html`
      <p class="reason">
        At token ${count(cache.broke_at)} it expected <code>${String(cache.expected)}</code>
        ${" "}and found <code>${String(cache.found)}</code>.
      </p>
    `}
  `;
}

// How far a prompt is read.
export function Progress({ progress }) {
  const { total, processed, cache } = progress;
  const known = cache ? `, ${count(cache)} of them known already` : "";
  return html`
    <div class="progress">
      <progress value=${processed} max=${total} aria-label="Reading the prompt" />
      <span>Reading the prompt: ${count(processed)} of ${count(total)} tokens${known}</span>
    </div>
  `;
}
