// Outlines of the regions of a heatmap whose contribution exceeds half of the largest one.

const THRESHOLD = 127.5; // half of the opacity of the largest contribution

/**
 * Return the paths (SVG) around the regions that contribute towards and against pneumonia, in pixels of the layer, and its size.
 * `layer` is the loaded image of a heatmap: orange towards pneumonia, blue against it.
 */
export function contours(layer) {
  const [width, height] = [layer.naturalWidth, layer.naturalHeight];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(layer, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  // Positive towards pneumonia. Transparent pixels have lost their color, and are far from the threshold.
  const contributions = new Float32Array(width * height);
  for (let i = 0; i < contributions.length; i++) {
    contributions[i] = rgba[4 * i] >= rgba[4 * i + 2] ? rgba[4 * i + 3] : -rgba[4 * i + 3];
  }
  return { width, height, towards: outline(contributions, width, height, 1), against: outline(contributions, width, height, -1) };
}

/** Return the path around the pixels with sign x contribution above the threshold, by marching squares. */
function outline(contributions, width, height, sign) {
  // Pixels have their value at their center; around the image the value is 0, so that outlines are closed.
  const value = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : sign * contributions[y * width + x]);
  const segments = [];
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const corners = [value(x, y), value(x + 1, y), value(x + 1, y + 1), value(x, y + 1)];
      const crossings = [];
      for (let side = 0; side < 4; side++) {
        const [start, end] = [corners[side], corners[(side + 1) % 4]];
        if (start > THRESHOLD === end > THRESHOLD) continue;
        const part = (THRESHOLD - start) / (end - start);
        const along = [[part, 0], [1, part], [1 - part, 1], [0, 1 - part]][side];
        crossings.push(`${(x + 0.5 + along[0]).toFixed(2)} ${(y + 0.5 + along[1]).toFixed(2)}`);
      }
      for (let i = 0; i < crossings.length; i += 2) segments.push(`M${crossings[i]}L${crossings[i + 1]}`);
    }
  }
  return segments.join("");
}
