// Batches, and cancelling them.

import { get, post } from "./client.js";
import { find, listIn, make, setText, showEmpty } from "./elements.js";
import { age, count } from "./format.js";

const section = find("#batches");
const dialog = find("#cancel-dialog");
const SHOWN = 20;
const CANCELLABLE = ["validating", "in_progress", "finalizing"];
const LOOKS = { in_progress: "running", failed: "bad", expired: "bad", completed: "good", ended: "good" };

/** The protocols in which batches are made, each with its list. created: seconds since 1970. */
const DOORS = [
  {
    path: "v1/batches",
    read: ({ id, endpoint, status, request_counts: counts, created_at: created }) => ({
      id,
      endpoint,
      status,
      created,
      total: counts.total,
      done: counts.completed + counts.failed,
      failed: counts.failed,
    }),
  },
  {
    path: "v1/messages/batches",
    read: ({ id, processing_status: status, request_counts: counts, created_at: created }) => {
      const { processing, succeeded, errored, canceled, expired } = counts;
      const done = succeeded + errored + canceled + expired;
      return {
        id,
        endpoint: "/v1/messages",
        status,
        created: Date.parse(created) / 1000,
        total: processing + done,
        done,
        failed: errored,
      };
    },
  },
];

let asked = null;  // the batch that the dialog is about

const showRows = listIn(find("tbody", section), ({ id }) => id, (batch) => {
  const state = make("span", { class: "pill" });
  const progress = make("progress", { "aria-label": `Progress of ${batch.id}` });
  const counts = make("span", { class: "soft" });
  const cancel = make("button", { type: "button", "aria-label": `Cancel ${batch.id}` }, "Cancel");
  const old = make("td", { class: "number age" });
  cancel.addEventListener("click", () => {
    asked = batch;
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
  const update = ({ status, total, done, failed, created }) => {
    setText(state, status.replaceAll("_", " "));
    state.className = `pill ${LOOKS[status] ?? ""}`;
    progress.max = Math.max(total, 1);
    progress.value = done;
    setText(counts, `${count(done)} of ${count(total)}${failed ? `, ${count(failed)} failed` : ""}`);
    setText(old, age(Date.now() / 1000 - created));
    const runs = CANCELLABLE.includes(status);
    if (!runs && document.activeElement === cancel) find("h2", section).focus();
    cancel.hidden = !runs;
  };
  return { node, update };
});

/** ask: shows the batches of now. failed(error): what went wrong with cancelling. */
export function startBatches(ask, failed) {
  dialog.addEventListener("submit", async (event) => {
    event.preventDefault();
    dialog.close();
    try {
      await post(`${asked.path}/${encodeURIComponent(asked.id)}/cancel`);
    } catch (error) {
      failed(error);
    }
    ask();
  });
  find("button[value=keep]", dialog).addEventListener("click", () => dialog.close());
}

export async function loadBatches() {
  const lists = await Promise.all(DOORS.map(async ({ path, read }) => {
    const { data } = await get(`${path}?limit=${SHOWN}`);
    return data.map((batch) => ({ ...read(batch), path }));
  }));
  const batches = lists.flat().sort((one, other) => other.created - one.created).slice(0, SHOWN);
  showRows(batches);
  showEmpty(section, batches.length ? "" : "No batches. POST /v1/batches makes one of a file of requests.");
}
