// The tables of requests.

import { find, setText, tableIn } from "./elements.js";
import { age, count, duration } from "./format.js";

const SHOWN = 12;

const COMMON = [
  { title: "Request", value: ({ id }) => id.replace(/^req_/, "").slice(0, 8), className: "id" },
  { title: "Route", value: ({ route }) => route, className: "minor" },
  { title: "Key", value: ({ key }) => key ?? "–", className: "minor" },
];
const TOKENS = [
  { title: "Prompt", value: (request) => count(request.prompt_tokens), className: "number minor" },
  { title: "Output", value: (request) => count(request.output_tokens), className: "number" },
];

/** How a request ended: the finish reasons of its answers, or what went wrong. */
function end({ state, status, finish_reasons: reasons }) {
  if (state === "gone") return "client gone";
  if (status >= 400) return `error ${status}`;
  return [...new Set(reasons)].join(", ") || "–";
}

/** Returns a function that shows the requests. Those that run are below the others, since their number changes all the time. */
export function requests() {
  const showRunning = tableIn(find("#running"), ({ id }) => id, [
    ...COMMON,
    { title: "State", value: ({ state }) => state, className: "state" },
    ...TOKENS,
    { title: "Age", value: ({ seconds }) => age(seconds), className: "number age" },
  ], "No request is running.");
  const showFinished = tableIn(find("#finished"), ({ id }) => id, [
    ...COMMON,
    { title: "End", value: end, className: "state" },
    ...TOKENS,
    { title: "TTFT", value: ({ ttft }) => duration(ttft), className: "number" },
    { title: "TPOT", value: ({ tpot }) => duration(tpot), className: "number minor" },
    { title: "In all", value: ({ seconds }) => duration(seconds), className: "number" },
  ], "No request has finished yet.");
  return ({ running, finished }) => {
    showRunning(running.slice(0, SHOWN));
    showFinished(finished.slice(0, SHOWN));
    setText(find("#running h2 small"), running.length > SHOWN ? `the oldest ${SHOWN} of ${count(running.length)}` : "");
    setText(find("#finished h2 small"), finished.length > SHOWN ? `the last ${SHOWN}` : "");
  };
}
