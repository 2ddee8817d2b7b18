// From an answer, which nobody vouches for, to nodes that can do nothing: Markdown without HTML, and what comes of it
// through DOMPurify.
import MarkdownIt from "./vendor/markdown-it.js";
import "./vendor/purify.js"; // sets globalThis.DOMPurify
import { coloured } from "./code.js";
import { formulas } from "./formulas.js";

const md = new MarkdownIt({ html: false, linkify: true, typographer: false });
md.use(formulas);
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (url) => /^(https?:\/\/|mailto:)/i.test(url) || PICTURE.test(url);

const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,[a-z0-9+/=]+$/i; // what carries no script
const { escapeHtml } = md.utils;

// Pictures from elsewhere would tell somebody that the answer was read: they are links.
md.renderer.rules.image = (tokens, index) => {
  const [token, source] = [tokens[index], tokens[index].attrGet("src")];
  const alt = escapeHtml(token.content);
  if (PICTURE.test(source)) return `<img src="${escapeHtml(source)}" alt="${alt}">`;
  return `<a href="${escapeHtml(source)}">${alt || "Picture"} ↗</a>`;
};

// Models put <br> into the cells of tables; nothing else of HTML is meant.
md.inline.ruler.before("html_inline", "break", (state, silent) => {
  const match = /^<br\s*\/?>/i.exec(state.src.slice(state.pos, state.pos + 8));
  if (!match) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos += match[0].length;
  return true;
});

md.renderer.rules.fence = (tokens, index, _options, env) => {
  const { content, info } = tokens[index];
  const language = info.trim().split(/\s+/, 1)[0];
  const body = coloured(content, language, env.ready) ?? escapeHtml(content);
  return `<pre data-language="${escapeHtml(language)}"><code>${body}</code></pre>\n`;
};
md.renderer.rules.code_block = (tokens, index) => `<pre><code>${escapeHtml(tokens[index].content)}</code></pre>\n`;

const RULES = {
  USE_PROFILES: { html: true, mathMl: true },
  FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "dialog", "video", "audio", "map", "area"],
  FORBID_ATTR: ["style", "id", "name", "srcset", "background", "usemap", "popover", "popovertarget"],
  FORBID_CONTENTS: ["annotation", "style", "script"], // KaTeX writes the formula's text a second time as an annotation
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

globalThis.DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "IMG" && !PICTURE.test(node.getAttribute("src"))) node.remove();
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

// The HTML of each part of a text on the top level: a paragraph, a list, a table. Not safe before `nodes`.
// ready() is called when colours of code came late and the text should be drawn again.
export function parts(text, ready) {
  const env = { ready };
  const tokens = md.parse(text, env);
  const found = [];
  let begin = 0;
  let depth = 0;
  tokens.forEach((token, index) => {
    depth += token.nesting;
    if (depth > 0) return;
    found.push(md.renderer.render(tokens.slice(begin, index + 1), md.options, env));
    begin = index + 1;
  });
  return found;
}

// Nodes of such HTML, with nothing in them that acts.
export const nodes = (part) => globalThis.DOMPurify.sanitize(part, RULES);
