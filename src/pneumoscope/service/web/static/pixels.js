// The values of an image with all its bits, and their display through a window. A canvas shows the part of the image that is in
// view, from a copy at about the resolution of the screen, so that a new window takes the same time for every image.

import { request } from "./api.js";

/** The values of an image; see `GET /v1/predictions/{id}/pixels`. */
export class PixelImage {
  constructor(description, numbers, grayLevels) {
    this.description = description;
    this.grayLevels = grayLevels; // of each number, as the model saw it
    this.width = description.columns;
    this.height = description.rows;
    this.copies = [{ numbers, width: this.width, height: this.height }]; // each half as wide and high as the one before
    this.defaultWindow = description.default_window ?? windowOfTable(description, grayLevels);
  }

  /** Return the copy that is reduced by a power of two. */
  copy(power) {
    while (this.copies.length <= power) this.copies.push(halved(this.copies.at(-1), this.description.padding));
    return this.copies[power];
  }

  /** Return the color of each number as RGBA, through a window; without one, as the model saw it. Padding is always black. */
  colors(window, inverted) {
    const { slope, intercept, white_is_zero, padding } = this.description;
    const colors = new Uint32Array(this.grayLevels.length);
    const brightness = window && brightnessFunction(window);
    for (let number = 0; number < colors.length; number++) {
      let gray = this.grayLevels[number];
      if (window) {
        gray = Math.round(255 * brightness(slope * number + intercept));
        if (white_is_zero) gray = 255 - gray;
      }
      if (inverted) gray = 255 - gray;
      colors[number] = 0xff000000 | (gray << 16) | (gray << 8) | gray;
    }
    if (padding !== null) colors[padding] = 0xff000000;
    return colors;
  }

  /** Draw a part of a copy, in its pixels, with these colors. */
  paint(canvas, colors, power, left, top, width, height) {
    const copy = this.copy(power);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const target = new Uint32Array(picture.data.buffer);
    for (let y = 0, at = 0; y < height; y++) {
      const start = (top + y) * copy.width + left;
      for (let x = start; x < start + width; x++) target[at++] = colors[copy.numbers[x]];
    }
    context.putImageData(picture, 0, 0);
  }
}

/** Load the values of an image. Throws an ApiError if that fails. */
export async function loadPixels(id) {
  const response = await request(`/v1/predictions/${id}/pixels`);
  const description = JSON.parse(response.headers.get("X-Pixel-Description"));
  const body = await response.arrayBuffer();
  const count = description.rows * description.columns;
  return new PixelImage(description, new Uint16Array(body, 0, count), new Uint8Array(body, 2 * count));
}

/** Return the function from values to brightness, 0 to 1, of a window (DICOM PS3.3 C.11.2.1.2). */
function brightnessFunction({ center, width, function: name }) {
  const clamp = (value) => Math.min(Math.max(value, 0), 1);
  if (name === "SIGMOID") return (value) => 1 / (1 + Math.exp((-4 * (value - center)) / width));
  if (name === "LINEAR_EXACT") return (value) => clamp((value - center) / width + 0.5);
  if (width <= 1) return (value) => Number(value > center - 0.5);
  return (value) => clamp((value - (center - 0.5)) / (width - 1) + 0.5);
}

/** Return the window that comes closest to a lookup table: a line through its gray levels of 10% and 90%. */
function windowOfTable({ slope, intercept }, grayLevels) {
  const dark = grayLevels.findIndex((level) => level >= 26);
  const bright = grayLevels.findIndex((level) => level >= 230);
  const isRising = dark < bright || bright < 0;
  const first = isRising ? Math.max(dark, 0) : grayLevels.findIndex((level) => level < 230);
  const last = isRising ? bright : grayLevels.findIndex((level) => level < 26);
  const [low, high] = [first, last < 0 ? grayLevels.length - 1 : last].map((number) => slope * number + intercept);
  return { center: (low + high) / 2, width: Math.max(Math.abs(high - low) / 0.8, 1), function: "LINEAR_EXACT" };
}

/** Return a copy of half the width and height; each pixel is the mean of four, or padding if one of them is. */
function halved({ numbers, width, height }, padding) {
  const half = { width: Math.ceil(width / 2), height: Math.ceil(height / 2) };
  half.numbers = new Uint16Array(half.width * half.height);
  for (let y = 0, at = 0; y < half.height; y++) {
    const above = 2 * y * width;
    const below = Math.min(2 * y + 1, height - 1) * width;
    for (let x = 0; x < half.width; x++, at++) {
      const left = 2 * x;
      const right = Math.min(left + 1, width - 1);
      const [a, b] = [numbers[above + left], numbers[above + right]];
      const [c, d] = [numbers[below + left], numbers[below + right]];
      const isPadding = a === padding || b === padding || c === padding || d === padding;
      half.numbers[at] = isPadding ? padding : (a + b + c + d + 2) >> 2;
    }
  }
  return half;
}
