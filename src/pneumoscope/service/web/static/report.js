// The printable report: its heatmap and its print button.

import { loadHeatmap, showError } from "./api.js";

const byId = (id) => document.getElementById(id);
const layer = byId("heatmap-layer");
if (layer) {
  loadHeatmap(layer.dataset.id, layer).catch((error) => {
    showError(byId("heatmap-error"), "{error}", error);
  });
}
byId("print").addEventListener("click", () => window.print());
