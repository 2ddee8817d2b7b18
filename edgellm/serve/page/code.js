// Code in colours, for the languages that lie here.
import hljs from "./vendor/highlight.js";

const LANGUAGES = [
  "bash",
  "c",
  "cpp",
  "csharp",
  "css",
  "diff",
  "dockerfile",
  "go",
  "ini",
  "java",
  "javascript",
  "json",
  "kotlin",
  "latex",
  "lua",
  "makefile",
  "markdown",
  "php",
  "powershell",
  "python",
  "r",
  "ruby",
  "rust",
  "shell",
  "sql",
  "swift",
  "typescript",
  "xml",
  "yaml",
];
const LONGEST = 100_000; // characters; longer code stays plain

// Each language is fetched when it is first met; whoever asked is told that it is there now.
const asked = new Map();

function fetched(name, ready) {
  if (!asked.has(name)) {
    asked.set(
      name,
      import(`./vendor/languages/${name}.js`).then((module) => hljs.registerLanguage(name, module.default)),
    );
  }
  asked.get(name).then(ready, () => {});
}

// Other names by which languages are called, for those that are not here yet and cannot say so themselves.
const ALIASES = {
  sh: "bash",
  zsh: "bash",
  console: "shell",
  h: "c",
  "c++": "cpp",
  cc: "cpp",
  hpp: "cpp",
  cs: "csharp",
  "c#": "csharp",
  patch: "diff",
  docker: "dockerfile",
  golang: "go",
  toml: "ini",
  js: "javascript",
  jsx: "javascript",
  mjs: "javascript",
  jsonc: "json",
  json5: "json",
  kt: "kotlin",
  tex: "latex",
  make: "makefile",
  md: "markdown",
  ps1: "powershell",
  py: "python",
  python3: "python",
  pycon: "python",
  rb: "ruby",
  rs: "rust",
  ts: "typescript",
  tsx: "typescript",
  html: "xml",
  svg: "xml",
  yml: "yaml",
};

// The HTML of a text in a language, or null when it is not known (yet: `ready` is called once it is).
export function coloured(text, language, ready) {
  const wanted = language.toLowerCase();
  const name = Object.hasOwn(ALIASES, wanted) ? ALIASES[wanted] : wanted;
  if (!LANGUAGES.includes(name) || text.length > LONGEST) return null;
  if (hljs.getLanguage(name)) return hljs.highlight(text, { language: name, ignoreIllegals: true }).value;
  fetched(name, ready);
  return null;
}
