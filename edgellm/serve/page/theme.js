// Light or dark as it was chosen, before anything is drawn; without a choice the page follows the system.
// An ordinary script, because modules run after the first drawing.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("edgellm.theme");
  } catch {
    // a browser that keeps nothing
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
