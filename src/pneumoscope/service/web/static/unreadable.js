// The list of unreadable files, which is live.

import { keepLive } from "./live.js";

/** Load the list again. Returns "done", "failed", or "signed out". */
async function refresh() {
  let response;
  let text;
  try {
    response = await fetch(location.href);
    text = await response.text();
  } catch {
    return "failed";
  }
  if (response.redirected) return "signed out";
  if (!response.ok) return "failed";
  const list = document.getElementById("list");
  const focused = list.contains(document.activeElement) && (document.activeElement.form?.action ?? document.activeElement.href);
  const newList = document.adoptNode(new DOMParser().parseFromString(text, "text/html").getElementById("list"));
  list.replaceWith(newList);
  if (focused) {
    const same = [...newList.querySelectorAll("a, button")].find((each) => (each.form?.action ?? each.href) === focused);
    same?.focus({ preventScroll: true });
  }
  return "done";
}

keepLive(refresh);
