// Formulas in Markdown: $…$, $$…$$, \(…\) and \[…\], drawn by KaTeX as MathML, which needs no fonts of its own.
import "./vendor/katex.js"; // sets globalThis.katex

const OPTIONS = { output: "mathml", throwOnError: false, trust: false, strict: "ignore", maxExpand: 300, maxSize: 20 };

function drawn(tex, displayMode) {
  try {
    return globalThis.katex.renderToString(tex, { ...OPTIONS, displayMode });
  } catch {
    return null; // too deep
  }
}

const DELIMITERS = [
  ["$$", "$$"],
  ["\\[", "\\]"],
  ["\\(", "\\)"],
  ["$", "$"],
];

function inline(state, silent) {
  const { src, pos } = state;
  const first = src.charCodeAt(pos);
  if (first !== 0x24 && first !== 0x5c) return false;
  const pair = DELIMITERS.find(([open]) => src.startsWith(open, pos));
  if (!pair) return false;
  const [open, close] = pair;
  const begin = pos + open.length;
  const end = src.indexOf(close, begin);
  if (end <= begin || end > state.posMax) return false;
  const tex = src.slice(begin, end);
  // A lone dollar is money unless it hugs the formula and no digit follows the closing one (Pandoc's rule).
  if (open === "$" && (/^\s|\s$|\\$|\n\s*\n/.test(tex) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) {
    const token = state.push("formula", "math", 0);
    token.content = tex;
    token.meta = { display: open === "$$" || open === "\\[" };
  }
  state.pos = end + close.length;
  return true;
}

function block(state, start, end, silent) {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]).trim();
  const pair = [DELIMITERS[0], DELIMITERS[1]].find(([open]) => line(start).startsWith(open));
  if (!pair || state.sCount[start] - state.blkIndent >= 4) return false;
  const [open, close] = pair;
  let last = start;
  let text = line(start).slice(open.length);
  while (!text.trimEnd().endsWith(close)) {
    last += 1;
    if (last >= end || (state.sCount[last] < state.blkIndent && line(last))) return false;
    text += `\n${line(last)}`;
  }
  const tex = text.trimEnd().slice(0, -close.length);
  if (tex.includes(close)) return false; // more than one in a line: they are inline
  if (silent) return true;
  const token = state.push("formula", "math", 0);
  Object.assign(token, { block: true, content: tex, map: [start, last + 1], meta: { display: true } });
  state.line = last + 1;
  return true;
}

// A plugin of markdown-it.
export function formulas(md) {
  md.inline.ruler.before("escape", "formula", inline);
  md.block.ruler.before("fence", "formula", block, { alt: ["paragraph", "blockquote", "list"] });
  md.renderer.rules.formula = (tokens, index) => {
    const { content, meta, block } = tokens[index];
    const math = drawn(content, meta.display) ?? `<code>${md.utils.escapeHtml(content)}</code>`;
    return block
      ? `<div class="formula">${math}</div>\n`
      : meta.display
        ? `<span class="formula">${math}</span>`
        : math;
  };
}
