// What scrolls by itself can be reached by keys, the search has a name, and an option is not broken at its dashes.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
new MutationObserver((_changes, observer) => {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    each.tabIndex = 0;
  }
  for (const each of document.querySelectorAll(".md-typeset :not(pre) > code")) {
    each.style.whiteSpace = each.textContent.length < 25 ? "nowrap" : "";
  }
  if (document.readyState === "complete") {
    observer.disconnect();
  }
}).observe(document.documentElement, { childList: true, subtree: true });
