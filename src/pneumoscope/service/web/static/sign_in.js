// The sign-in page: takes the code from the address that a QR code contains.

const code = new URLSearchParams(location.hash.slice(1)).get("code");
if (code) {
  const form = document.getElementById("code-form");
  history.replaceState(null, "", location.pathname + location.search); // the code stays out of the history
  form.elements.code.value = code;
  form.querySelector("button").focus();
}
