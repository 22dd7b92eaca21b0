// The viewer: zoom, pan, window/level, ruler, heatmap, contour, comparison with a second image, and keyboard shortcuts.

import { format, ignoresShortcut, loadHeatmap, messages, request, setPressed, showError } from "./api.js";
import { contours } from "./contour.js";
import { keepLive, update } from "./live.js";
import { Ruler } from "./measure.js";
import { linkNeighbors, listAddress } from "./neighbors.js";
import { isOpening, keepPage, openImage } from "./navigation.js";
import { loadPixels } from "./pixels.js";
import { chooseLabel, discardChanges, openReview, predictionId } from "./review.js";
import { isFullScreen, observePage, showReading, toggleFullScreen, toggleReading } from "./screen.js";
import { updateShown } from "./updates.js";

const byId = (id) => document.getElementById(id);
// Without a window, gray levels are those that the model saw.
const DEFAULT_DISPLAY = { window: null, inverted: false };
const INITIAL_VIEW = { scale: 1, x: 0, y: 0, fitted: true, ...DEFAULT_DISPLAY, heatmap: false, contour: false, windowDrag: false, measuring: false };
// Of the image that is shown:
let viewports = []; // empty if the image was removed
let main;
let comparison;
let heatmapLayer; // without a source until the heatmap is shown
let view = { ...INITIAL_VIEW };

// ---- Display

/** Return width and height of an image in its own pixels. */
function naturalSize({ pixels, image }) {
  return pixels ? [pixels.width, pixels.height] : [image.naturalWidth || 1, image.naturalHeight || 1];
}

/** Return the pixels of the screen per pixel of an image. All images have the same displayed height, whatever their size. */
function scaleOf(viewport) {
  return (view.scale * naturalSize(main)[1]) / naturalSize(viewport)[1];
}

/** Return the position of an image in its viewport. Images of different shapes have the same center. */
function positionOf(viewport) {
  const [width] = naturalSize(viewport);
  return [view.x + (naturalSize(main)[0] * view.scale - width * scaleOf(viewport)) / 2, view.y];
}

/** Apply the state of the view to the viewports and controls. */
function draw() {
  if (Math.abs(view.scale * devicePixelRatio - 1) < 1e-6) {
    // Each pixel of the image is one of the screen.
    view.x = Math.round(view.x * devicePixelRatio) / devicePixelRatio;
    view.y = Math.round(view.y * devicePixelRatio) / devicePixelRatio;
  }
  const { width: boxWidth, height: boxHeight } = main.element.getBoundingClientRect();
  const [width, height] = naturalSize(main).map((side) => side * view.scale);
  const isLarger = width > boxWidth + 1 || height > boxHeight + 1;
  for (const viewport of shownViewports()) {
    const { element, stage, overlay, ruler, pixels } = viewport;
    const scale = scaleOf(viewport);
    const [left, top] = positionOf(viewport);
    const [stageWidth, stageHeight] = naturalSize(viewport);
    stage.style.width = `${stageWidth}px`;
    stage.style.height = `${stageHeight}px`;
    stage.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    stage.classList.toggle("magnified", scale * devicePixelRatio >= 2);
    element.classList.toggle("window-dragging", view.windowDrag);
    element.classList.toggle("measuring", view.measuring);
    // One finger scrolls the page, unless it has something to move.
    element.classList.toggle("scrolls-page", !(isLarger || view.windowDrag || view.measuring));
    overlay.querySelector(".contour")?.setAttribute("transform", contourTransform(scale));
    ruler.draw(([x, y]) => [left + x * scale, top + y * scale], boxWidth, pixels?.description.spacing);
  }
  requestPaint();
  showWindow();
  showMeasurements();
  byId("zoom").value = `${Math.round(100 * view.scale * devicePixelRatio)}%`;
  setPressed("invert", view.inverted);
  setPressed("window-drag", view.windowDrag);
  setPressed("measure", view.measuring);
  setPressed("heatmap-toggle", view.heatmap);
  setPressed("contour-toggle", view.contour);
  if (heatmapLayer) {
    heatmapLayer.style.opacity = (byId("heatmap-opacity")?.value ?? 0) / 100;
    heatmapLayer.style.visibility = view.heatmap ? "visible" : "hidden";
    byId("heatmap-controls")?.classList.toggle("unused", !view.heatmap);
    main.overlay.querySelector(".contour")?.toggleAttribute("hidden", !view.contour);
  }
}

/** Return the viewports that are not hidden. */
function shownViewports() {
  return viewports.filter(({ element }) => !element.hidden);
}

let paintRequested = false;

/** Paint the images before the next frame, once for all changes. */
function requestPaint() {
  if (paintRequested) return;
  paintRequested = true;
  requestAnimationFrame(() => {
    paintRequested = false;
    for (const viewport of shownViewports()) if (viewport.pixels) paint(viewport);
  });
}

/** Draw the part of an image that is in view to its canvas, unless it shows that already. */
function paint(viewport) {
  const { element, canvas, pixels } = viewport;
  const scale = scaleOf(viewport);
  const power = Math.max(0, Math.floor(Math.log2(1 / (scale * devicePixelRatio))));
  const copy = pixels.copy(power);
  const unit = 2 ** power; // pixels of the image per pixel of the copy
  const start = (offset) => Math.max(0, Math.floor(-offset / scale / unit));
  const end = (offset, side, last) => Math.min(last, Math.ceil((side - offset) / scale / unit));
  const [x, y] = positionOf(viewport);
  const [left, top] = [start(x), start(y)];
  const [width, height] = [end(x, element.clientWidth, copy.width) - left, end(y, element.clientHeight, copy.height) - top];
  if (width <= 0 || height <= 0) return; // out of view
  const window = windowFor(viewport);
  const drawn = JSON.stringify([power, left, top, width, height, window, view.inverted]);
  if (drawn === viewport.drawn) return;
  pixels.paint(canvas, pixels.colors(window, view.inverted), power, left, top, width, height);
  Object.assign(canvas.style, { left: `${left * unit}px`, top: `${top * unit}px`, width: `${width * unit}px`, height: `${height * unit}px` });
  viewport.drawn = drawn;
}

/** Show the values of an image in a viewport when they are loaded; until then, or if that fails, its 8-bit image stays. */
async function showPixels(viewport, loading) {
  Object.assign(viewport, { pixels: null, drawn: "", loading });
  delete viewport.element.dataset.loaded;
  try {
    const pixels = await loading;
    if (viewport.loading !== loading) return; // another image was chosen
    viewport.pixels = pixels;
    if (viewport === main) offerWindows();
    paint(viewport);
    viewport.element.dataset.loaded = "";
    if (view.fitted) fit();
    else draw();
  } catch (error) {
    showError(byId("save-status"), messages.imageFailed, error);
  }
}

/** Fit the image to its viewport. */
function fit() {
  const [width, height] = naturalSize(main);
  const box = main.element.getBoundingClientRect();
  view.scale = Math.min(box.width / width, box.height / height);
  view.x = (box.width - view.scale * width) / 2;
  view.y = (box.height - view.scale * height) / 2;
  view.fitted = true;
  draw();
}

/** Zoom by a factor around a point of the viewport, by default its center. */
function zoom(factor, x, y) {
  const box = main.element.getBoundingClientRect();
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

/** Restore the default display and fit the image. */
function reset() {
  Object.assign(view, DEFAULT_DISPLAY);
  fit();
}

/** Switch a flag of the view. */
function toggle(flag) {
  view[flag] = !view[flag];
  draw();
}

// ---- Window and level

/** Return the window of the main image. */
function currentWindow() {
  return view.window ?? main.pixels.defaultWindow;
}

/** Return the window of an image; null for its default. The window of another image differs from its default as the main one does. */
function windowFor({ pixels }) {
  if (!view.window || pixels === main.pixels) return view.window;
  const [from, to] = [main.pixels.defaultWindow, pixels.defaultWindow];
  const factor = to.width / from.width;
  const direction = main.pixels.description.white_is_zero === pixels.description.white_is_zero ? 1 : -1;
  return {
    center: to.center + direction * (view.window.center - from.center) * factor,
    width: view.window.width * factor,
    function: view.window.function,
  };
}

/** Set the window in the unit of the image's values, near their range. */
function setWindow(center, width) {
  if (!main.pixels) return;
  const { smallest, largest, slope } = main.pixels.description;
  const { width: defaultWidth, function: name } = main.pixels.defaultWindow;
  const range = Math.max(largest - smallest, defaultWidth);
  const current = view.window?.function ?? name;
  view.window = {
    center: Math.min(Math.max(center, smallest - range), largest + range),
    width: Math.min(Math.max(width, current === "LINEAR" ? 1 : Math.abs(slope)), 10 * range),
    function: current,
  };
  draw();
}

/** Change the window by the pixels of a drag; to the right it becomes wider, downwards the image becomes darker. */
function dragWindow(dx, dy) {
  if (!main.pixels) return;
  const { center, width } = currentWindow();
  const unit = main.pixels.defaultWindow.width / 255;
  const direction = main.pixels.description.white_is_zero ? -1 : 1;
  setWindow(center + (direction * unit * dy) / 2, width + unit * dx);
}

/** Fill the list of windows: the default, those of the file, and the full range. */
function offerWindows() {
  const { description } = main.pixels;
  const [list, full] = [byId("window-preset"), byId("window-full")];
  list.querySelectorAll("[data-window]").forEach((option) => option !== full && option.remove());
  description.windows.forEach((window, i) => {
    const name = window.explanation || format(messages.fileWindow, { number: i + 1 });
    const option = new Option(`${name}${messages.opening}${rounded(window.center)} / ${rounded(window.width)}${messages.closing}`);
    option.dataset.window = JSON.stringify({ center: window.center, width: window.width, function: window.function });
    full.before(option);
  });
  const [center, width] = [(description.smallest + description.largest) / 2, description.largest - description.smallest];
  full.dataset.window = JSON.stringify({ center, width: width || 1, function: "LINEAR_EXACT" });
  for (const id of ["window-preset", "window-level", "window-width"]) byId(id).disabled = false;
}

/** Apply the chosen window. */
function chooseWindow() {
  const { window } = byId("window-preset").selectedOptions[0].dataset;
  view.window = window ? JSON.parse(window) : null;
  draw();
}

/** Write the window to its controls, except the one that is being edited. */
function showWindow() {
  if (!main.pixels) return;
  const window = currentWindow();
  for (const [id, value] of [["window-level", window.center], ["window-width", window.width]]) {
    if (document.activeElement !== byId(id)) byId(id).value = rounded(value);
  }
  const text = JSON.stringify(view.window);
  const options = [...byId("window-preset").options];
  const preset = view.window ? options.find((option) => option.dataset.window === text) : options[0];
  byId("window-manual").hidden = Boolean(preset);
  byId("window-preset").selectedIndex = options.indexOf(preset ?? byId("window-manual"));
}

/** Return a number of a window without noise of floating point. */
function rounded(number) {
  return Number(number.toPrecision(6));
}

/** Apply the numbers in the fields of the window. */
function readWindow() {
  const [center, width] = ["window-level", "window-width"].map((id) => byId(id).valueAsNumber);
  if (Number.isFinite(center) && width > 0) setWindow(center, width);
}

// ---- Ruler

/** Return the point of an image at a position in its viewport. */
function pointAt(viewport, [x, y]) {
  const [scale, [left, top]] = [scaleOf(viewport), positionOf(viewport)];
  return [(x - left) / scale, (y - top) / scale];
}

/** Show the lengths as text too, for screen readers, and with a button that removes the latest line. */
function showMeasurements() {
  const texts = viewports.flatMap(({ ruler, pixels }) => ruler.texts(pixels?.description.spacing));
  byId("measurement").classList.toggle("unused", !view.measuring && !texts.length);
  byId("remove-measurement").hidden = !texts.length;
  const text = texts.join(" · ") || messages.measure;
  if (byId("measurement").value !== text) byId("measurement").value = text;
}

/** Remove the latest line of the viewport that has one; without lines, stop measuring. */
function removeMeasurement() {
  const viewport = viewports.findLast(({ ruler }) => ruler.lines.length);
  if (viewport) viewport.ruler.removeLast();
  else view.measuring = false;
  draw();
}

/** Draw a line in the middle of a viewport, or exchange the ends of the latest one. */
function measureByKey(viewport) {
  const { width, height } = viewport.element.getBoundingClientRect();
  if (viewport.ruler.lines.length) viewport.ruler.swapEnds();
  else {
    viewport.ruler.begin(...pointAt(viewport, [0.4 * width, height / 2]));
    viewport.ruler.moveEnd(...pointAt(viewport, [0.6 * width, height / 2]));
  }
  draw();
}

/** Move the end of the latest line by pixels of the image. */
function moveMeasurement({ ruler }, dx, dy) {
  const [x, y] = ruler.lines.at(-1).end;
  ruler.moveEnd(x + dx, y + dy);
  draw();
}

// ---- Mouse and touch

/** Make a viewport react to dragging, pinching, the wheel and double clicks. */
function addPointerControls(viewport) {
  const { element, ruler } = viewport;
  const pointers = new Map();
  let measures = false; // whether the drag draws a line
  const position = (event) => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, position(event));
    if (measures) ruler.removeLast(); // a second finger
    measures = view.measuring && pointers.size === 1 && event.button === 0;
    if (measures) ruler.begin(...pointAt(viewport, position(event)));
  });
  element.addEventListener("pointermove", (event) => {
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
    } else if (measures) {
      ruler.moveEnd(...pointAt(viewport, now));
      draw();
    } else if (view.windowDrag || event.buttons === 2 || event.shiftKey) {
      dragWindow(dx, dy);
    } else if (event.pointerType !== "touch" || !element.classList.contains("scrolls-page")) pan(dx, dy);
  });
  for (const type of ["pointerup", "pointercancel"]) {
    element.addEventListener(type, (event) => {
      pointers.delete(event.pointerId);
      if (measures) {
        const { start, end } = ruler.lines.at(-1);
        if (type === "pointercancel" || (start[0] === end[0] && start[1] === end[1])) ruler.removeLast(); // a click
        measures = false;
        draw();
      }
      // Pinched to less than the viewport: one finger could not move it.
      const isTouch = event.pointerType === "touch" && !pointers.size;
      if (isTouch && !view.fitted && element.classList.contains("scrolls-page")) fit();
    });
  }
  // Two fingers zoom; without this, the page could scroll with them.
  element.addEventListener("touchmove", (event) => event.touches.length > 1 && event.cancelable && event.preventDefault(), { passive: false });
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("dblclick", () => view.measuring || fit());
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), ...position(event));
    },
    { passive: false },
  );
  viewport.image.addEventListener("load", () => (view.fitted ? fit() : draw()));
}

// ---- Heatmap, contour and comparison

let heatmapLoading = null;

/** Load the heatmap when it is first needed: the reviewer sees the image without it first. */
function requireHeatmap() {
  heatmapLoading ??= loadHeatmap(predictionId, heatmapLayer).catch((error) => {
    heatmapLoading = null;
    throw error;
  });
  return heatmapLoading;
}

/** Show or hide the heatmap or its contour. */
async function showHeatmap(part, visible) {
  view[part] = visible;
  draw();
  if (!visible) return;
  const layer = heatmapLayer;
  try {
    await requireHeatmap();
    if (part === "contour" && layer === heatmapLayer) await drawContour();
  } catch (error) {
    if (layer !== heatmapLayer) return; // another image was opened
    view[part] = false;
    draw();
    showError(byId("save-status"), messages.heatmapFailed, error);
  }
}

let contourSize = null; // of the layer, pixels

/** Compute the contour of the heatmap once. */
async function drawContour() {
  if (contourSize) return;
  const layer = heatmapLayer;
  await layer.decode();
  if (layer !== heatmapLayer) return; // another image was opened
  const { width, height, ...paths } = contours(layer);
  contourSize = [width, height];
  for (const path of main.overlay.querySelectorAll(".contour path")) path.setAttribute("d", paths[path.dataset.direction]);
  draw();
}

/** Return the transform from pixels of the layer to the screen. */
function contourTransform(scale) {
  if (!contourSize) return "";
  const [width, height] = naturalSize(main).map((side, i) => (side * scale) / contourSize[i]);
  return `translate(${view.x} ${view.y}) scale(${width} ${height})`;
}

/** Show the chosen image in the second viewport, or hide it. */
function updateComparison() {
  const chosen = byId("compare").value;
  const { element, image, ruler } = comparison;
  element.hidden = !chosen;
  ruler.lines.length = 0;
  if (chosen === "same") showHeatmap("heatmap", true);
  if (chosen) {
    const name = byId("compare").selectedOptions[0].textContent;
    image.src = `/v1/predictions/${chosen === "same" ? predictionId : chosen}/image.png`;
    showPixels(comparison, chosen === "same" ? main.loading : loadPixels(chosen));
    byId("compare-caption").textContent = name;
    element.setAttribute("aria-label", format(messages.compareWith, { name }));
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
    location.assign(listAddress());
  } catch (error) {
    showError(byId("save-status"), messages.deleteFailed, error);
  }
}

// ---- Keyboard shortcuts and buttons

const PAN_STEP = 40; // pixels
const shortcuts = {
  j: () => byId("next").hidden || byId("next").click(),
  k: () => byId("previous").hidden || byId("previous").click(),
  p: () => label("pneumonia"),
  o: () => label("other_finding"),
  n: () => label("no_finding"),
  u: () => label("unusable"),
  "?": () => byId("shortcuts").showModal(),
};
const displayShortcuts = {
  h: () => byId("heatmap-toggle") && showHeatmap("heatmap", !view.heatmap),
  c: () => byId("contour-toggle") && showHeatmap("contour", !view.contour),
  i: () => toggle("inverted"),
  w: () => toggle("windowDrag"),
  m: () => toggle("measuring"),
  s: toggleFullScreen,
  r: () => isFullScreen() && toggleReading(),
  f: fit,
  1: () => zoom(1 / devicePixelRatio / view.scale),
  0: reset,
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
};
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Choose a label by key. The reader sees what was chosen, and that it was saved. */
function label(name) {
  showReading();
  chooseLabel(name);
}

/** Return what a key does while a viewport has the focus: pan, or change the latest line while measuring. */
function viewportAction(viewport, event) {
  const step = arrows[event.key];
  if (view.measuring && event.key === "Enter") return () => measureByKey(viewport);
  if (!step) return undefined;
  const [dx, dy] = step;
  if (!view.measuring || !viewport.ruler.lines.length) return () => pan(-PAN_STEP * dx, -PAN_STEP * dy);
  const pixels = event.shiftKey ? 10 : 1;
  return () => moveMeasurement(viewport, pixels * dx, pixels * dy);
}

document.addEventListener("keydown", (event) => {
  if (ignoresShortcut(event) || isOpening()) return;
  const focused = viewports.find(({ element }) => element === event.target);
  const hasRuler = view.measuring || viewports.some(({ ruler }) => ruler.lines.length);
  const removal = event.key === "Escape" && hasRuler ? removeMeasurement : undefined;
  const action =
    (focused && viewportAction(focused, event)) ?? removal ?? shortcuts[event.key] ?? (main && displayShortcuts[event.key]);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && "ponu".includes(event.key)) return; // holding the key down saves once
  action();
});

// ---- Start

const sizeObserver = new ResizeObserver(() => (view.fitted ? fit() : draw()));

/** Start the scripts of the image that is shown now. */
function openViewer() {
  if (heatmapLayer?.src) URL.revokeObjectURL(heatmapLayer.src); // of the image before
  viewports = [...document.querySelectorAll(".viewport")].map((element) => ({
    element,
    stage: element.querySelector(".stage"),
    image: element.querySelector(".image"), // with 8 bits, until the values are loaded
    canvas: element.querySelector("canvas"),
    overlay: element.querySelector(".annotations"),
    ruler: new Ruler(element.querySelector(".annotations")),
    pixels: null, // PixelImage
    drawn: "", // what the canvas shows
  }));
  [main, comparison] = viewports;
  heatmapLayer = document.querySelector(".heatmap-layer");
  view = { ...INITIAL_VIEW };
  heatmapLoading = contourSize = null;
  openReview(() => openImage(location.href, { isNewEntry: false }));
  linkNeighbors(predictionId);
  byId("delete")?.addEventListener("click", deleteImage);
  sizeObserver.disconnect();
  observePage();
  if (main) openDisplay();
}

/** Start the display of an image that was not removed. */
function openDisplay() {
  const buttons = {
    fit,
    reset,
    "actual-size": displayShortcuts[1],
    "zoom-in": displayShortcuts["+"],
    "zoom-out": displayShortcuts["-"],
    invert: displayShortcuts.i,
    "window-drag": displayShortcuts.w,
    measure: displayShortcuts.m,
    "remove-measurement": removeMeasurement,
    "heatmap-toggle": displayShortcuts.h,
    "contour-toggle": displayShortcuts.c,
    "full-screen": toggleFullScreen,
    "show-reading": displayShortcuts.r,
    help: shortcuts["?"],
  };
  for (const [id, action] of Object.entries(buttons)) byId(id)?.addEventListener("click", () => action());
  for (const id of ["window-level", "window-width"]) {
    byId(id).addEventListener("input", readWindow);
    byId(id).addEventListener("blur", showWindow);
  }
  byId("window-preset").addEventListener("change", chooseWindow);
  byId("heatmap-opacity")?.addEventListener("input", draw);
  byId("compare").addEventListener("change", updateComparison);
  for (const id of ["window-preset", "compare"]) {
    // After a choice with the mouse, keys are shortcuts again.
    byId(id).addEventListener("change", (event) => event.target.matches(":focus-visible") || event.target.blur());
  }
  viewports.forEach(addPointerControls);
  sizeObserver.observe(main.element);
  fit();
  showPixels(main, loadPixels(predictionId));
}

openViewer();
keepPage(() => {
  openViewer();
  update(); // what changed while the image was loaded
});
keepLive(updateShown);
