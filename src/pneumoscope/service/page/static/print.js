// The report: its heatmap, and its one button.

import { lay } from "./api.js";

const id = (name) => document.getElementById(name);
const layer = id("layer");
if (layer) {
  lay(layer.dataset.id, layer, id("low"), id("high")).catch((error) => {
    id("broken").textContent = error.message;
  });
}
id("print").addEventListener("click", () => window.print());
