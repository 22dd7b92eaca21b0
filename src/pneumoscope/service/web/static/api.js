// Shared by all pages: translated messages and requests to the HTTP API.

/** Messages in the language of the page, from its template. */
export const messages = JSON.parse(document.getElementById("messages")?.textContent ?? "{}");

/** Return a message with {name} placeholders replaced by values. */
export function format(message, values) {
  return message.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Return a time in a time zone to the minute, such as "2026-01-31 09:30". */
export function localTime(timestamp, timeZone) {
  // Sweden writes dates as ISO 8601 does.
  const options = { timeZone, dateStyle: "short", timeStyle: "short" };
  return new Date(timestamp).toLocaleString("sv-SE", options);
}

/** True while the browser leaves the page to sign in. */
export let signingIn = false;

/** Open the sign-in page, which returns to this page afterwards. */
function signIn() {
  signingIn = true;
  location.assign(`/sign-in?${new URLSearchParams({ next: location.pathname + location.search })}`);
}

/** A failed request: a message and details. */
export class ApiError extends Error {
  constructor(message, detail = "") {
    super(message);
    this.detail = detail;
  }
}

/** Return the error that a problem document (RFC 9457) describes; `problem` is null if the response is not one. */
export function problemError(problem) {
  const { lang } = document.documentElement;
  const [title, advice] = messages.errors[problem?.code] ?? [messages.requestFailed, ""];
  if (problem?.message) return new ApiError(title, problem.message);
  // The API explains most errors in English only.
  return new ApiError(title, lang === "en" ? [problem?.detail, problem?.hint].filter(Boolean).join(". ") : advice);
}

/** Show an error in an element: `template` with the error's message as {error}, followed by its details. */
export function showError(element, template, error, values = {}) {
  const detail = error.detail ? `${messages.opening}${error.detail}${messages.closing}` : "";
  element.textContent = format(template, { ...values, error: error.message }) + detail;
}

/** Send a request to the API and return the response. Throws an ApiError if it fails. */
export async function request(path, options = {}) {
  let response;
  try {
    // The language of the page may be another one than that of the browser.
    const headers = { "Accept-Language": document.documentElement.lang, ...options.headers };
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError(messages.unreachable);
  }
  if (response.status === 401) signIn();
  if (!response.ok) throw problemError(await response.json().catch(() => null));
  return response;
}

/** Load the heatmap of a prediction into an image element. */
export async function loadHeatmap(id, layer) {
  const response = await request(`/v1/predictions/${id}/heatmap-layer.png`);
  layer.src = URL.createObjectURL(await response.blob());
  layer.hidden = false;
}

/** Return the stored prediction with this id, and its entity tag as `etag`. */
export async function fetchPrediction(id) {
  const response = await request(`/v1/predictions/${id}`);
  return { ...(await response.json()), etag: response.headers.get("ETag") };
}

/** Store a review and return the updated prediction. Fails if the prediction no longer has the entity tag. */
export async function putReview(id, review, etag) {
  const body = JSON.stringify(review);
  const headers = { "Content-Type": "application/json", "If-Match": etag };
  return (await request(`/v1/predictions/${id}/review`, { method: "PUT", headers, body })).json();
}

/** Withdraw the reader's review. */
export async function deleteReview(id) {
  await request(`/v1/predictions/${id}/review`, { method: "DELETE" });
}

/** Set the pressed state of a toggle button; a page can be without it. */
export function setPressed(id, pressed) {
  document.getElementById(id)?.setAttribute("aria-pressed", pressed);
}

/** Return true if a key press belongs to a form field, a dialog or the browser instead of a shortcut. */
export function ignoresShortcut(event) {
  const field = event.target.closest?.("input:not([type=radio], [type=range], [type=file]), textarea, select, dialog");
  return field || event.ctrlKey || event.metaKey || event.altKey;
}
