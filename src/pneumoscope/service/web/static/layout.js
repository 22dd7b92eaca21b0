// Every page: keep the focused element above the fixed footer, and clear drafts at sign-out.

const footer = document.querySelector(".footer");
// The footer's height changes when its text wraps or a status message appears.
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--footer-height", `${footer.offsetHeight}px`);
  const focused = document.activeElement;
  if (focused !== document.body) focused.scrollIntoView({ block: "nearest" });
}).observe(footer);
// Browsers scroll a text field only until its cursor is visible.
document.addEventListener("focusin", ({ target }) => {
  if (target.matches(":focus-visible")) target.scrollIntoView({ block: "nearest" });
});
document.querySelector("form[action='/sign-out']")?.addEventListener("submit", () => sessionStorage.clear());
