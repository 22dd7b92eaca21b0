// The layout of the viewer: full screen, tools beside the image, and the height that is left for the image.

import { setPressed } from "./api.js";

const root = document.documentElement;
const landscape = matchMedia("(orientation: landscape)");
const smallLandscape = matchMedia("(max-height: 500px) and (orientation: landscape)"); // a phone on its side

/** Return whether image and tools fill the screen. */
export function isFullScreen() {
  return root.classList.contains("full-screen");
}

/** Fill the screen with the image and its tools, or end that. Where the browser cannot hide its own bars, the window is filled. */
export function toggleFullScreen() {
  const isFull = root.classList.toggle("full-screen");
  if (isFull && document.fullscreenEnabled) root.requestFullscreen().catch(() => {});
  else if (document.fullscreenElement) document.exitFullscreen();
  updateLayout();
  scrollTo(0, 0); // decision and patient are at the top
}

/** Show or hide prediction and reading in full screen. */
export function toggleReading() {
  root.classList.toggle("shows-reading");
  updateLayout();
}

/** Show prediction and reading, also in full screen. */
export function showReading() {
  root.classList.add("shows-reading");
  updateLayout();
}

/** Choose the layout. On a screen that is wider than high, tools beside the image leave it the height. */
function updateLayout() {
  root.classList.toggle("tools-beside", smallLandscape.matches || (isFullScreen() && landscape.matches));
  setPressed("full-screen", isFullScreen());
  setPressed("show-reading", root.classList.contains("shows-reading"));
  measurePage();
}

/** Tell the style sheet where the viewer starts, so that the image takes the rest of the screen. */
function measurePage() {
  const top = document.querySelector(".viewer-layout").getBoundingClientRect().top + scrollY;
  root.style.setProperty("--viewer-top", `${top}px`);
}

const titleObserver = new ResizeObserver(measurePage);

/** Lay out the page whose content is shown now, and follow the height of its title. */
export function observePage() {
  titleObserver.disconnect();
  document.querySelectorAll(".header, .viewer-title").forEach((element) => titleObserver.observe(element));
  updateLayout();
}

document.addEventListener("fullscreenchange", () => {
  if (!document.fullscreenElement) root.classList.remove("full-screen"); // also by Esc
  updateLayout();
  scrollTo(0, 0);
});
for (const query of [landscape, smallLandscape]) query.addEventListener("change", updateLayout);
