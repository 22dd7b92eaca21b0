// The ruler of the viewer: lines on an image, with their length in mm where the distance of the pixels is known.

import { format, messages } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const LABEL_GAP = 12; // pixels between the end of a line and its label

/** The lines on one image, drawn over its viewport. Coordinates are pixels of the image. */
export class Ruler {
  constructor(overlay) {
    this.group = overlay.querySelector(".lines");
    this.lines = [];
  }

  /** Begin a line. */
  begin(x, y) {
    this.lines.push({ start: [x, y], end: [x, y] });
  }

  /** Move the end of the latest line. */
  moveEnd(x, y) {
    this.lines.at(-1).end = [x, y];
  }

  /** Remove the latest line. */
  removeLast() {
    this.lines.pop();
  }

  /** Exchange the ends of the latest line. */
  swapEnds() {
    const line = this.lines.at(-1);
    [line.start, line.end] = [line.end, line.start];
  }

  /** Draw all lines; `toScreen` returns the position of a point of the image on the overlay, which is `width` wide. */
  draw(toScreen, width, spacing) {
    this.group.replaceChildren();
    for (const { start, end } of this.lines) {
      const [[x1, y1], [x2, y2]] = [toScreen(start), toScreen(end)];
      const lines = ["halo", "line"].map((name) => element("line", { class: name, x1, y1, x2, y2 }));
      const ends = [[x1, y1], [x2, y2]].map(([cx, cy]) => element("circle", { cx, cy, r: 3 }));
      const label = element("text", {});
      label.textContent = lengthText(start, end, spacing);
      this.group.append(...lines, ...ends, label);
      // Beyond the end of the line, or above the line if there is no space.
      const space = label.getComputedTextLength() + LABEL_GAP;
      const isRight = x2 >= x1 ? x2 + space < width : x2 - space < 0;
      const top = isRight === x2 >= x1 ? y2 : Math.min(y1, y2);
      setAttributes(label, { x: x2 + (isRight ? LABEL_GAP : -LABEL_GAP), y: top - LABEL_GAP, "text-anchor": isRight ? "start" : "end" });
    }
  }

  /** Return the lengths of all lines as text. */
  texts(spacing) {
    return this.lines.map(({ start, end }) => lengthText(start, end, spacing));
  }
}

/** Return the length of a line as text: in mm with what the file states about them, or in pixels. */
function lengthText(start, end, spacing) {
  const [dx, dy] = [end[0] - start[0], end[1] - start[1]];
  const length = Math.hypot(dx * (spacing?.column ?? 1), dy * (spacing?.row ?? 1));
  return format(messages.lengths[spacing?.kind ?? "pixels"], { length: length.toFixed(1) });
}

function element(name, attributes) {
  return setAttributes(document.createElementNS(SVG, name), attributes);
}

function setAttributes(shape, attributes) {
  for (const [attribute, value] of Object.entries(attributes)) shape.setAttribute(attribute, value);
  return shape;
}
