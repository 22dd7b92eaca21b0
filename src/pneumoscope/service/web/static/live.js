// Keeps a page live: it is updated when the service says that something changed.

import { messages } from "./api.js";

const RETRY_MS = 10_000; // after an error response, which ends the stream for the browser
const NOTICE_MS = 2000; // a shorter interruption is not shown
const PAUSE = 9; // times the duration of an update before the next one: many open pages do not overload a service
const MAX_PAUSE_MS = 60_000;
const status = document.getElementById("live-status");
let refresh = async () => "done";
let source = null;
let noticeTimer = 0;
let retryTimer = 0;
let lastUpdate = Promise.resolve();
let updateIsDue = false; // after the last one

/** Open the stream, if the page is visible: a browser opens at most six connections to a host. */
function connect() {
  clearTimeout(retryTimer);
  if (source || document.hidden) return;
  // If something has changed since the page was loaded, the first event comes at once.
  source = new EventSource(`/events?revision=${document.querySelector("[data-revision]").dataset.revision}`);
  source.onopen = hideNotice;
  source.onmessage = update;
  source.onerror = () => {
    noticeTimer ||= setTimeout(() => showNotice(messages.notLive), NOTICE_MS);
    if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again
    source = null;
    retryTimer = setTimeout(connect, RETRY_MS * (0.5 + Math.random()));
    update();
  };
}

/** Update the page, once for all events that arrive before its turn. */
export function update() {
  if (updateIsDue) return;
  updateIsDue = true;
  lastUpdate = lastUpdate.then(async () => {
    updateIsDue = false;
    if (document.hidden) return; // the first event after it is shown again updates the page
    const started = performance.now();
    if ((await refresh()) === "signed out") askToSignIn();
    const pause = Math.min(PAUSE * (performance.now() - started), MAX_PAUSE_MS);
    await new Promise((resolve) => setTimeout(resolve, pause));
  });
}

/** Show a link to the sign-in page. */
function askToSignIn() {
  const link = document.createElement("a");
  link.href = "/sign-in";
  link.target = "_blank";
  link.textContent = messages.signIn;
  showNotice(messages.sessionExpired, " ", link);
}

/** Show why the page is not live. */
function showNotice(...content) {
  clearTimeout(noticeTimer);
  noticeTimer = -1;
  status.replaceChildren(...content);
}

/** Hide the notice: the page is live. */
function hideNotice() {
  clearTimeout(noticeTimer);
  noticeTimer = 0;
  status.replaceChildren();
}

/** Close the stream, which is not an interruption. */
function disconnect() {
  source?.close();
  source = null;
  clearTimeout(retryTimer);
  hideNotice();
}

/** Keep the page live by a function that updates it, and returns "done", "failed", or "signed out". */
export function keepLive(updatePage) {
  refresh = updatePage;
  connect();
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => event.persisted && connect());
}
