// The list from which the image was opened: the images before and after it.

const byId = (id) => document.getElementById(id);
const list = JSON.parse(sessionStorage.getItem("list") ?? '{"images":[]}'); // stored by the worklist

/** Return the address of the list. */
export function listAddress() {
  return list.url ?? "/";
}

/** Fill the links to the next and the previous image. */
export function linkNeighbors(shownId) {
  // A corrected age leads to another prediction, which takes the place of the one before.
  const replaced = list.images.find((image) => image.id === sessionStorage.getItem("replaced"));
  sessionStorage.removeItem("replaced");
  if (replaced && !list.images.some((image) => image.id === shownId)) {
    replaced.id = shownId;
    sessionStorage.setItem("list", JSON.stringify(list));
  }
  document.querySelector(".age-form")?.addEventListener("submit", () => sessionStorage.setItem("replaced", shownId));

  const index = list.images.findIndex((image) => image.id === shownId);
  const neighbors = { previous: list.images[index - 1]?.id, next: list.images[index + 1]?.id };
  for (const [name, id] of Object.entries(neighbors)) {
    const link = byId(name);
    const nextPage = name === "next" && list.nextPage;
    link.hidden = index < 0 || !(id || nextPage);
    link.href = id ? `/images/${id}` : nextPage || "/";
  }
}
