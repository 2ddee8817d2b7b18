// What scrolls by itself can be reached by keys, and the search has a name.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
new MutationObserver((_changes, observer) => {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    each.tabIndex = 0;
  }
  if (document.readyState === "complete") {
    observer.disconnect();
  }
}).observe(document.documentElement, { childList: true, subtree: true });
