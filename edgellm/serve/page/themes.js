// Light, dark, or as the system has it; theme.js sets what was chosen before the page is drawn.
const NAME = "edgellm.theme";
const ORDER = { "": "light", light: "dark", dark: "" };
const WORDS = { "": "Light and dark follow the system.", light: "Light.", dark: "Dark." };

// Goes on to the next of the three; words that say so.
export function nextTheme() {
  const root = document.documentElement;
  const next = ORDER[root.dataset.theme ?? ""];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  try {
    if (next) localStorage.setItem(NAME, next);
    else localStorage.removeItem(NAME);
  } catch {
    return `${WORDS[next]} This browser does not keep it.`;
  }
  return WORDS[next];
}
