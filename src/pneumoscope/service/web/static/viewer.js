// The viewer: zoom, pan, window/level, heatmap, comparison with a second image, and keyboard shortcuts.

import { format, ignoresShortcut, loadHeatmap, messages, request, showError } from "./api.js";
import { chooseLabel, discardChanges, predictionId } from "./review.js";

const byId = (id) => document.getElementById(id);
const list = JSON.parse(sessionStorage.getItem("list") ?? '{"images":[]}'); // stored by the worklist
const viewports = [...document.querySelectorAll(".viewport")];
const heatmapLayer = document.querySelector(".heatmap-layer");
const DEFAULT_WINDOW = { level: 127.5, width: 255, inverted: false };
const view = { scale: 1, x: 0, y: 0, fitted: true, ...DEFAULT_WINDOW, heatmap: false, windowDrag: false };

// ---- Display

/** Return width and height of an image in its own pixels. */
function naturalSize(image) {
  return [image.naturalWidth || 1, image.naturalHeight || 1];
}

/** Apply the state of the view to the viewports and controls. */
function draw() {
  for (const viewport of viewports.filter((each) => !each.hidden)) {
    const image = viewport.querySelector(".image");
    const stage = viewport.querySelector(".stage");
    const [width, height] = naturalSize(image);
    // Both images have the same displayed height, whatever their size in pixels.
    const factor = (view.scale * naturalSize(viewports[0].querySelector(".image"))[1]) / height;
    stage.style.width = `${width}px`;
    stage.style.height = `${height}px`;
    stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${factor})`;
    stage.classList.toggle("magnified", factor * devicePixelRatio >= 2);
    viewport.classList.toggle("window-dragging", view.windowDrag);
  }
  const slope = (255 / view.width) * (view.inverted ? -1 : 1);
  const intercept = 0.5 - view.level / view.width;
  for (const transfer of document.querySelectorAll("#window-filter feComponentTransfer > *")) {
    transfer.setAttribute("slope", slope);
    transfer.setAttribute("intercept", view.inverted ? 1 - intercept : intercept);
  }
  byId("window-level").value = view.level;
  byId("window-width").value = view.width;
  byId("zoom").value = `${Math.round(100 * view.scale * devicePixelRatio)}%`;
  setPressed("invert", view.inverted);
  setPressed("window-drag", view.windowDrag);
  setPressed("heatmap-toggle", view.heatmap);
  if (heatmapLayer) {
    heatmapLayer.style.opacity = (byId("heatmap-opacity")?.value ?? 0) / 100;
    heatmapLayer.style.visibility = view.heatmap ? "visible" : "hidden";
    byId("heatmap-controls")?.style.setProperty("visibility", heatmapLayer.style.visibility);
  }
}

/** Set the pressed state of a toggle button. */
function setPressed(id, pressed) {
  byId(id)?.setAttribute("aria-pressed", pressed);
}

/** Fit the image to its viewport. */
function fit() {
  const [width, height] = naturalSize(viewports[0].querySelector(".image"));
  const box = viewports[0].getBoundingClientRect();
  view.scale = Math.min(box.width / width, box.height / height);
  view.x = (box.width - view.scale * width) / 2;
  view.y = (box.height - view.scale * height) / 2;
  view.fitted = true;
  draw();
}

/** Zoom by a factor around a point of the viewport, by default its center. */
function zoom(factor, x, y) {
  const box = viewports[0].getBoundingClientRect();
  const [centerX, centerY] = [x ?? box.width / 2, y ?? box.height / 2];
  const scale = Math.min(Math.max(view.scale * factor, 0.02), 40);
  view.x = centerX - ((centerX - view.x) * scale) / view.scale;
  view.y = centerY - ((centerY - view.y) * scale) / view.scale;
  view.scale = scale;
  view.fitted = false;
  draw();
}

/** Move the image by pixels of the screen. */
function pan(dx, dy) {
  view.x += dx;
  view.y += dy;
  view.fitted = false;
  draw();
}

/** Set the window in gray levels of 0 to 255. */
function setWindow(level, width) {
  view.level = Math.min(Math.max(level, 0), 255);
  view.width = Math.min(Math.max(width, 2), 510);
  draw();
}

/** Restore the default window and fit the image. */
function reset() {
  Object.assign(view, DEFAULT_WINDOW);
  fit();
}

/** Switch a flag of the view. */
function toggle(flag) {
  view[flag] = !view[flag];
  draw();
}

// ---- Mouse and touch

/** Make a viewport react to dragging, pinching, the wheel and double clicks. */
function addPointerControls(viewport) {
  const pointers = new Map();
  const position = (event) => {
    const box = viewport.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  viewport.addEventListener("pointerdown", (event) => {
    viewport.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, position(event));
  });
  viewport.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = position(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    if (other) {
      const distance = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      zoom(distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      pan(dx / 2, dy / 2);
    } else if (view.windowDrag || event.buttons === 2 || event.shiftKey) {
      setWindow(view.level + dy / 2, view.width + dx);
    } else pan(dx, dy);
  });
  for (const type of ["pointerup", "pointercancel"]) {
    viewport.addEventListener(type, (event) => pointers.delete(event.pointerId));
  }
  viewport.addEventListener("contextmenu", (event) => event.preventDefault());
  viewport.addEventListener("dblclick", fit);
  viewport.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), ...position(event));
    },
    { passive: false },
  );
  const image = viewport.querySelector(".image");
  image.addEventListener("load", () => (view.fitted ? fit() : draw()));
  image.addEventListener("error", async () => {
    if (!image.getAttribute("src")) return;
    try {
      await request(image.src); // an image element does not tell why it failed
    } catch (error) {
      showError(byId("save-status"), messages.imageFailed, error);
    }
  });
}

// ---- Heatmap and comparison

/** Show or hide the heatmap. It is loaded when first shown: the reviewer sees the image without it first. */
async function showHeatmap(visible) {
  view.heatmap = visible;
  draw();
  if (!visible || heatmapLayer.src) return;
  try {
    await loadHeatmap(predictionId, heatmapLayer, byId("scale-min"), byId("scale-max"));
  } catch (error) {
    view.heatmap = false;
    draw();
    showError(byId("save-status"), messages.heatmapFailed, error);
  }
}

/** Show the chosen image in the second viewport, or hide it. */
function updateComparison() {
  const chosen = byId("compare").value;
  const viewport = byId("compare-viewport");
  viewport.hidden = !chosen;
  if (chosen === "same") showHeatmap(true);
  if (chosen) {
    const name = byId("compare").selectedOptions[0].textContent;
    viewport.querySelector(".image").src = `/v1/predictions/${chosen === "same" ? predictionId : chosen}/image.png`;
    byId("compare-caption").textContent = name;
    viewport.setAttribute("aria-label", format(messages.compareWith, { name }));
  }
  fit();
}

// ---- Deletion

/** Delete the image after confirmation, and return to the list. */
async function deleteImage() {
  const dialog = byId("confirm-delete");
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  try {
    await request(`/v1/predictions/${predictionId}`, { method: "DELETE" });
    discardChanges();
    location.assign(list.url ?? "/");
  } catch (error) {
    showError(byId("save-status"), messages.deleteFailed, error);
  }
}

// ---- Next and previous image of the list

const index = list.images.findIndex((image) => image.id === predictionId);
const neighbors = { previous: list.images[index - 1]?.id, next: list.images[index + 1]?.id };
for (const [name, id] of Object.entries(neighbors)) {
  const link = byId(name);
  const nextPage = name === "next" && list.nextPage;
  link.hidden = index < 0 || !(id || nextPage);
  link.href = id ? `/images/${id}` : nextPage || "/";
}
for (const { id, name, available } of list.images) {
  if (id !== predictionId && available) byId("compare")?.append(new Option(name, id));
}

// ---- Keyboard shortcuts and buttons

const PAN_STEP = 40; // pixels
const shortcuts = {
  j: () => byId("next").hidden || byId("next").click(),
  k: () => byId("previous").hidden || byId("previous").click(),
  p: () => chooseLabel("pneumonia"),
  o: () => chooseLabel("other_finding"),
  n: () => chooseLabel("no_finding"),
  u: () => chooseLabel("unusable"),
  "?": () => byId("shortcuts").showModal(),
};
const displayShortcuts = {
  h: () => byId("heatmap-toggle") && showHeatmap(!view.heatmap),
  i: () => toggle("inverted"),
  w: () => toggle("windowDrag"),
  f: fit,
  1: () => zoom(1 / devicePixelRatio / view.scale),
  0: reset,
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
};
if (viewports.length) Object.assign(shortcuts, displayShortcuts); // absent if the image was removed
const arrows = {
  ArrowLeft: [PAN_STEP, 0],
  ArrowRight: [-PAN_STEP, 0],
  ArrowUp: [0, PAN_STEP],
  ArrowDown: [0, -PAN_STEP],
};
document.addEventListener("keydown", (event) => {
  if (ignoresShortcut(event)) return;
  const arrow = event.target.closest(".viewport") && arrows[event.key];
  const action = arrow ? () => pan(...arrow) : shortcuts[event.key];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && "ponu".includes(event.key)) return; // holding the key down saves once
  action();
});

byId("delete")?.addEventListener("click", deleteImage);
if (viewports.length) {
  const buttons = {
    fit,
    reset,
    "actual-size": shortcuts[1],
    "zoom-in": shortcuts["+"],
    "zoom-out": shortcuts["-"],
    invert: shortcuts.i,
    "window-drag": shortcuts.w,
    "heatmap-toggle": shortcuts.h,
    help: shortcuts["?"],
  };
  for (const [id, action] of Object.entries(buttons)) byId(id)?.addEventListener("click", action);
  byId("window-level").addEventListener("input", (event) => setWindow(Number(event.target.value), view.width));
  byId("window-width").addEventListener("input", (event) => setWindow(view.level, Number(event.target.value)));
  byId("heatmap-opacity")?.addEventListener("input", draw);
  byId("compare").addEventListener("change", updateComparison);
  viewports.forEach(addPointerControls);
  new ResizeObserver(() => view.fitted && fit()).observe(viewports[0]);
  fit();
}
