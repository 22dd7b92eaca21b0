// What the pages share: words in the person's language, and requests whose failures say what is wrong.

export const words = JSON.parse(document.getElementById("words")?.textContent ?? "{}");

/** A sentence with its values put in. */
export function say(sentence, values) {
  return sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** What a problem document says, for a person. */
export function why(problem) {
  return [problem?.detail, problem?.hint].filter(Boolean).join(". ");
}

export let leaving = false; // to sign in, and to come back

/** Go and sign in, and come back. */
function signIn() {
  leaving = true;
  location.assign(`/sign-in?${new URLSearchParams({ next: location.pathname + location.search })}`);
}

/** Write a sentence of the page, and after it what went wrong; an API's words are English in every language. */
export function tell(place, sentence, error) {
  const detail = document.createElement("span");
  detail.lang = error.lang ?? document.documentElement.lang;
  detail.textContent = error.message;
  place.replaceChildren(sentence, " ", detail);
}

/** Send a request to the API; throws an Error whose message a person can read, with the language of it. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(words.gone);
  }
  if (answer.status === 401) signIn();
  if (!answer.ok) {
    const said = why(await answer.json().catch(() => null));
    throw Object.assign(new Error(said || `${answer.status}`), { lang: "en" });
  }
  return answer;
}

/** Lay the heatmap of an image over it, and write at the ends of its scale what they stand for. */
export async function lay(image, layer, low, high) {
  const answer = await ask(`/v1/predictions/${image}/heatmap-layer.png`);
  const most = Number(answer.headers.get("X-Heatmap-Scale")).toPrecision(2);
  low.textContent = `−${most}`;
  high.textContent = `+${most}`;
  layer.src = URL.createObjectURL(await answer.blob());
  layer.hidden = false;
}

/** An image as it is kept now. */
export async function record(id) {
  return (await ask(`/v1/predictions/${id}`)).json();
}

/** Keep a person's reading of an image; gives the image as it is kept then. */
export async function review(id, agrees, note) {
  const body = JSON.stringify({ agrees, note });
  const headers = { "Content-Type": "application/json" };
  return (await ask(`/v1/predictions/${id}/review`, { method: "PUT", headers, body })).json();
}

/** True where a key that is pressed is meant for a field in which one types, or for the browser. */
export function elsewhere(event) {
  const field = event.target.closest?.("input:not([type=radio], [type=range], [type=file]), textarea, select, dialog");
  return field || event.ctrlKey || event.metaKey || event.altKey;
}
