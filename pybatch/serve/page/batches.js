// Batches, and cancelling them.

import { get, post, ServerError } from "./client.js";
import { find, listIn, make, setText, showEmpty } from "./elements.js";
import { age, count } from "./format.js";

const section = find("#batches");
const dialog = find("#cancel-dialog");
const RUNNING = ["validating", "in_progress", "finalizing"];
const STATES = { in_progress: "running", failed: "bad", expired: "bad", completed: "good" };
const SHOWN = 20;

let cancelling = "";  // the batch that the dialog is about

const showRows = listIn(find("tbody", section), ({ id }) => id, (batch) => {
  const state = make("span", { class: "pill" });
  const progress = make("progress", { "aria-label": `Progress of ${batch.id}` });
  const counts = make("span", { class: "soft" });
  const cancel = make("button", { type: "button", "aria-label": `Cancel ${batch.id}` }, "Cancel");
  const old = make("td", { class: "number" });
  cancel.addEventListener("click", () => {
    cancelling = batch.id;
    setText(find("#cancel-name"), batch.id);
    dialog.showModal();
  });
  const node = make(
    "tr",
    {},
    make("th", { scope: "row" }, make("code", {}, batch.id), make("span", { class: "soft" }, batch.endpoint)),
    make("td", { class: "state" }, state),
    make("td", { class: "progress" }, progress, counts),
    old,
    make("td", { class: "action" }, cancel),
  );
  const update = ({ status, request_counts: counted, created_at: created }) => {
    setText(state, status.replaceAll("_", " "));
    state.className = `pill ${STATES[status] ?? ""}`;
    const { total = 0, completed = 0, failed = 0 } = counted ?? {};
    progress.max = Math.max(total, 1);
    progress.value = completed + failed;
    const words = `${count(completed + failed)} of ${count(total)}`;
    setText(counts, failed ? `${words}, ${count(failed)} failed` : words);
    setText(old, age(Date.now() / 1000 - created));
    const runs = RUNNING.includes(status);
    if (!runs && document.activeElement === cancel) find("h2", section).focus();
    cancel.hidden = !runs;
  };
  return { node, update };
});

/** failed(error): what went wrong with cancelling. */
export function startBatches(ask, failed) {
  dialog.addEventListener("submit", async (event) => {
    event.preventDefault();
    dialog.close();
    try {
      await post(`v1/batches/${encodeURIComponent(cancelling)}/cancel`);
    } catch (error) {
      failed(error);
    }
    ask();
  });
  find("button[value=keep]", dialog).addEventListener("click", () => dialog.close());
}

export async function loadBatches() {
  let batches = [];
  try {
    batches = (await get(`v1/batches?limit=${SHOWN}`)).data;
  } catch (error) {
    if (!(error instanceof ServerError && error.status === 404)) throw error;
  }
  showRows(batches);
  showEmpty(section, batches.length ? "" : "No batches. POST /v1/batches makes one of a file of requests.");
}
