// Asking for the key of a server that has one.

import { storedKey } from "./client.js";
import { find, setText } from "./elements.js";

const dialog = find("#key-dialog");
const input = find("#key");
const error = find("#key-error");
const forget = find("#forget-key");

/** given(): called when there is a key to try. */
export function startKeys(given) {
  forget.hidden = !storedKey.get();
  dialog.addEventListener("submit", (event) => {
    event.preventDefault();
    storedKey.set(input.value.trim());
    input.value = "";
    forget.hidden = false;
    dialog.close();
    given();
  });
  dialog.addEventListener("cancel", (event) => event.preventDefault());  // there is nothing to see without a key
  forget.addEventListener("click", () => {
    storedKey.forget();
    location.reload();
  });
}

/** Opens the dialog. The key that was sent, if there was one, is told to be wrong. */
export function askForKey() {
  if (dialog.open) return;
  error.hidden = !storedKey.get();
  setText(error, error.hidden ? "" : "The server does not take this key. Is it whole?");
  storedKey.forget();
  forget.hidden = true;
  dialog.showModal();
}
