// The report: its heatmap, and its one button.

import { lay, tell } from "./api.js";

const id = (name) => document.getElementById(name);
const layer = id("layer");
if (layer) {
  lay(layer.dataset.id, layer, id("low"), id("high")).catch((error) => {
    tell(id("broken"), "", error);
  });
}
id("print").addEventListener("click", () => window.print());
