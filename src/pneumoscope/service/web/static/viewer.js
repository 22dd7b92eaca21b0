// One image: size, place, level and width, heatmap, a second image beside it, and the keys.

import { ask, elsewhere, lay, say, tell, words } from "./api.js";
import { forget, here, read } from "./reading.js";

const id = (name) => document.getElementById(name);
const list = JSON.parse(sessionStorage.getItem("list") ?? '{"images":[]}');
const panes = [...document.querySelectorAll(".pane")];
const layer = document.querySelector(".layer");
const view = { scale: 1, x: 0, y: 0, fitted: true, level: 127.5, width: 255, inverted: false, heat: false, windowing: false };

// ---- what is seen

function size(image) {
  return [image.naturalWidth || 1, image.naturalHeight || 1];
}

function draw() {
  for (const pane of panes.filter((each) => !each.hidden)) {
    const image = pane.querySelector(".image");
    const stage = pane.querySelector(".stage");
    const [width, height] = size(image);
    // Another image beside it is drawn as large as this one is, whatever its pixels.
    const factor = (view.scale * size(panes[0].querySelector(".image"))[1]) / height;
    stage.style.width = `${width}px`;
    stage.style.height = `${height}px`;
    stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${factor})`;
    stage.classList.toggle("close", factor * devicePixelRatio >= 2);
    pane.classList.toggle("windowing", view.windowing);
  }
  const slope = (255 / view.width) * (view.inverted ? -1 : 1);
  const start = 0.5 - view.level / view.width;
  for (const part of document.querySelectorAll("#window feComponentTransfer > *")) {
    part.setAttribute("slope", slope);
    part.setAttribute("intercept", view.inverted ? 1 - start : start);
  }
  id("level").value = view.level;
  id("width").value = view.width;
  id("zoom").value = `${Math.round(100 * view.scale * devicePixelRatio)}%`;
  press("invert", view.inverted);
  press("drag", view.windowing);
  press("heat", view.heat);
  if (layer) {
    layer.style.opacity = (id("opacity")?.value ?? 0) / 100;
    layer.style.visibility = view.heat ? "visible" : "hidden";
    id("heating")?.style.setProperty("visibility", layer.style.visibility);
  }
}

function press(name, on) {
  id(name)?.setAttribute("aria-pressed", on);
}

function fit() {
  const [width, height] = size(panes[0].querySelector(".image"));
  const box = panes[0].getBoundingClientRect();
  view.scale = Math.min(box.width / width, box.height / height);
  view.x = (box.width - view.scale * width) / 2;
  view.y = (box.height - view.scale * height) / 2;
  view.fitted = true;
  draw();
}

/** Make it larger around a point of the pane, which stays where it is. */
function zoom(factor, x, y) {
  const box = panes[0].getBoundingClientRect();
  const [px, py] = [x ?? box.width / 2, y ?? box.height / 2];
  const scale = Math.min(Math.max(view.scale * factor, 0.02), 40);
  view.x = px - ((px - view.x) * scale) / view.scale;
  view.y = py - ((py - view.y) * scale) / view.scale;
  view.scale = scale;
  view.fitted = false;
  draw();
}

function move(x, y) {
  view.x += x;
  view.y += y;
  view.fitted = false;
  draw();
}

function setWindow(level, width) {
  view.level = Math.min(Math.max(level, 0), 255);
  view.width = Math.min(Math.max(width, 2), 510);
  draw();
}

function reset() {
  Object.assign(view, { level: 127.5, width: 255, inverted: false });
  fit();
}

function toggle(what) {
  view[what] = !view[what];
  draw();
}

// ---- mouse, fingers

function handle(pane) {
  const fingers = new Map();
  const place = (event) => {
    const box = pane.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  pane.addEventListener("pointerdown", (event) => {
    pane.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
  });
  pane.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    const other = [...fingers].find(([key]) => key !== event.pointerId)?.[1];
    fingers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    if (other) {
      const length = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      zoom(length(now) / length(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      move(dx / 2, dy / 2);
    } else if (view.windowing || event.buttons === 2 || event.shiftKey) {
      setWindow(view.level + dy / 2, view.width + dx);
    } else move(dx, dy);
  });
  for (const end of ["pointerup", "pointercancel"]) pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
  pane.addEventListener("contextmenu", (event) => event.preventDefault());
  pane.addEventListener("dblclick", fit);
  pane.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), ...place(event));
    },
    { passive: false },
  );
  pane.querySelector(".image").addEventListener("load", () => (view.fitted ? fit() : draw()));
  pane.querySelector(".image").addEventListener("error", async (event) => {
    if (!event.target.getAttribute("src")) return;
    try {
      await ask(event.target.src);
    } catch (error) {
      tell(id("saved"), words.broken, error);
    }
  });
}

// ---- the heatmap, and an image beside

/** Show the heatmap, or no longer; it is asked for when it is first wanted, so that the image itself is seen first. */
async function heatmap(on) {
  view.heat = on;
  draw();
  if (!on || layer.src) return;
  try {
    await lay(here, layer, id("low"), id("high"));
  } catch (error) {
    view.heat = false;
    draw();
    tell(id("saved"), "", error);
  }
}

function beside() {
  const chosen = id("beside").value;
  const pane = id("second");
  pane.hidden = !chosen;
  if (chosen === "same") heatmap(true);
  if (chosen) {
    pane.querySelector(".image").src = `/v1/predictions/${chosen === "same" ? here : chosen}/image.png`;
    id("second-name").textContent = id("beside").selectedOptions[0].textContent;
    pane.setAttribute("aria-label", say(words.beside, { name: id("second-name").textContent }));
  }
  fit();
}

// ---- the image is deleted

async function remove() {
  id("sure").showModal();
  await new Promise((closed) => id("sure").addEventListener("close", closed, { once: true }));
  if (id("sure").returnValue !== "yes") return;
  try {
    await ask(`/v1/predictions/${here}`, { method: "DELETE" });
    forget();
    location.assign(list.back ?? "/");
  } catch (error) {
    tell(id("saved"), "", error);
  }
}

// ---- next and previous, in the order of the list that the person came from

const at = list.images.findIndex(([image]) => image === here);
const go = { previous: list.images[at - 1]?.[0], next: list.images[at + 1]?.[0] };
for (const name of ["previous", "next"]) {
  const link = id(name);
  const more = name === "next" && at >= 0 && list.more;
  link.hidden = !(at >= 0 && (go[name] || more));
  link.href = go[name] ? `/images/${go[name]}` : list.more || "/";
}
for (const [image, name, shown] of list.images) if (image !== here && shown) id("beside")?.append(new Option(name, image));

const step = 40;
const keys = {
  n: () => id("next").hidden || id("next").click(),
  p: () => id("previous").hidden || id("previous").click(),
  a: () => read("yes"),
  d: () => read("no"),
  "?": () => id("keys").showModal(),
};
const imageKeys = {
  h: () => id("heat") && heatmap(!view.heat),
  i: () => toggle("inverted"),
  w: () => toggle("windowing"),
  f: fit,
  1: () => zoom(1 / devicePixelRatio / view.scale),
  0: reset,
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
};
if (panes.length) Object.assign(keys, imageKeys); // an image that was removed has nothing to move
const arrows = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
document.addEventListener("keydown", (event) => {
  if (elsewhere(event)) return;
  const inPane = event.target.closest(".pane") && arrows[event.key];
  const does = inPane ? () => move(...arrows[event.key]) : keys[event.key];
  if (!does) return;
  event.preventDefault();
  if (event.repeat && "ad".includes(event.key)) return; // a key that is held is one reading
  does();
});

id("remove").addEventListener("click", remove);
if (panes.length) {
  const clicks = {
    fit, reset, pixel: keys[1], in: keys["+"], out: keys["-"], invert: keys.i, drag: keys.w, heat: keys.h, help: keys["?"],
  };
  for (const [name, does] of Object.entries(clicks)) id(name)?.addEventListener("click", does);
  id("level").addEventListener("input", (event) => setWindow(Number(event.target.value), view.width));
  id("width").addEventListener("input", (event) => setWindow(view.level, Number(event.target.value)));
  id("opacity")?.addEventListener("input", draw);
  id("beside").addEventListener("change", beside);
  panes.forEach(handle);
  new ResizeObserver(() => view.fitted && fit()).observe(panes[0]);
  fit();
}
