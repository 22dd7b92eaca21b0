// What the pages share: words in the person's language, and requests whose failures say what is wrong.

export const words = JSON.parse(document.getElementById("words")?.textContent ?? "{}");

/** A sentence with its values put in. */
export function say(sentence, values) {
  return sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** What a problem document says, for a person. */
export function why(problem) {
  return [problem?.detail, problem?.advice].filter(Boolean).join(". ");
}

/** Go and sign in, and come back. */
export function signIn() {
  location.assign(`/sign-in?${new URLSearchParams({ next: location.pathname + location.search })}`);
}

/** Send a request to the API; throws an Error whose message a person can read. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(words.gone ?? "the service cannot be reached");
  }
  if (answer.status === 401) signIn();
  if (!answer.ok) throw new Error(why(await answer.json().catch(() => null)) || `${answer.status}`);
  return answer;
}

/** Lay the heatmap of a film over it, and write at the ends of its scale what they stand for. */
export async function lay(film, layer, low, high) {
  const answer = await ask(`/v1/predictions/${film}/heatmap-layer.png`);
  const most = Number(answer.headers.get("X-Heatmap-Scale")).toPrecision(2);
  low.textContent = `−${most}`;
  high.textContent = `+${most}`;
  layer.src = URL.createObjectURL(await answer.blob());
  layer.hidden = false;
}

/** Keep a person's reading of a film. */
export async function review(id, agrees, note) {
  const body = JSON.stringify({ agrees, note });
  return ask(`/v1/predictions/${id}/review`, { method: "PUT", headers: { "Content-Type": "application/json" }, body });
}

/** True where a key that is pressed is meant for a field, or for the browser. */
export function elsewhere(event) {
  const field = event.target.closest?.("input:not([type=radio]):not([type=range]), textarea, select, dialog");
  return field || event.ctrlKey || event.metaKey || event.altKey;
}
