// Every page: nothing is hidden by what is always in sight below, and nothing of a person stays when they sign out.

const foot = document.querySelector(".foot");
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--foot", `${foot.offsetHeight}px`); // it wraps on a narrow screen
  const focused = document.activeElement;
  if (focused !== document.body) focused.scrollIntoView({ block: "nearest" });
}).observe(foot);
document.querySelector("form[action='/sign-out']")?.addEventListener("submit", () => sessionStorage.clear());
