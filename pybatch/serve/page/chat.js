// The chat box.

import { get, stream } from "./client.js";
import { find, make, setText } from "./elements.js";
import { count, duration, short } from "./format.js";

const form = find("#ask");
const message = find("#message");
const messages = find("#messages");
const model = find("#chat-model");
const send = find("#send");
const stop = find("#stop");
const restart = find("#new-chat");
const HELLO = "Nothing is kept: the conversation ends with this tab.";

let conversation = [];
let answering = null;  // an AbortController while an answer comes

export function startChat(failed) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(failed);
  });
  message.addEventListener("input", allow);
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!send.disabled) form.requestSubmit();
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") answering?.abort();
  });
  stop.addEventListener("click", () => answering?.abort());
  restart.addEventListener("click", () => {
    answering?.abort();
    conversation = [];
    clear();
    message.focus();
  });
  clear();
}

function clear() {
  messages.replaceChildren(make("p", { class: "empty soft" }, HELLO));
  restart.disabled = true;
}

/** Reads which models there are. */
export async function loadModels() {
  const names = (await get("v1/models")).data.map(({ id }) => id);
  const before = model.value;
  model.replaceChildren(...names.map((name) => make("option", {}, name)));
  if (names.includes(before)) model.value = before;
  allow();
  return names;
}

function allow() {
  send.disabled = Boolean(answering) || !model.value || !message.value.trim();
}

function add(role, name) {
  find(".empty", messages)?.remove();
  const text = make("p", { class: "text" });
  const facts = make("p", { class: "soft" });
  messages.append(make("article", { class: role }, make("h3", { class: "soft" }, name), text, facts));
  return { text, facts };
}

async function ask(failed) {
  const content = message.value.trim();
  const name = model.value;
  if (!content || answering) return;
  const mine = (answering = new AbortController());
  setText(add("user", "You").text, content);
  const shown = add("assistant", name);
  const asked = [...conversation, { role: "user", content }];
  message.value = "";
  working(true);
  const started = performance.now();
  let text = "", first = null, usage = null, ended = "";
  try {
    const events = stream("v1/chat/completions", {
      model: name,
      messages: asked,
      max_tokens: find("#chat-tokens").valueAsNumber,
      temperature: find("#chat-temperature").valueAsNumber,
      stream: true,
      stream_options: { include_usage: true },
    }, mine.signal);
    for await (const event of events) {
      const choice = event.choices?.[0];
      const piece = choice?.delta?.content;
      if (piece) {
        first ??= performance.now();
        text += piece;
        follow(() => shown.text.append(piece));
      }
      if (choice?.finish_reason === "length") ended = "cut off at the token limit";
      usage = event.usage ?? usage;
    }
    conversation = [...asked, { role: "assistant", content: text }];
  } catch (error) {
    if (mine.signal.aborted) {
      ended = "stopped";
      conversation = [...asked, { role: "assistant", content: text }];
    } else {
      shown.facts.className = "wrong";
      ended = error.message;
      if (!message.value) message.value = content;  // to be sent again
      failed(error);
    }
  }
  const seconds = (performance.now() - started) / 1000;
  follow(() => setText(shown.facts, facts(usage, first && (first - started) / 1000, seconds, ended)));
  setText(find("#told"), ended && !text ? ended : `${name}: ${text}`);
  if (answering === mine) {
    answering = null;
    working(false);
  }
}

/** How many tokens came, how soon and how fast. first: seconds to the first one. */
function facts(usage, first, seconds, ended) {
  const tokens = usage?.completion_tokens;
  const found = ended ? [ended] : [];
  if (tokens) found.push(`${count(tokens)} tokens`);
  if (first !== null) found.push(`first after ${duration(first)}`);
  if (tokens > 1 && seconds > first) found.push(`${short((tokens - 1) / (seconds - first))} tokens/s`);
  return found.join(" · ");
}

function working(on) {
  messages.setAttribute("aria-busy", String(on));
  stop.hidden = !on;
  send.hidden = on;
  restart.disabled = false;
  if (on) setText(find("#told"), "Answering");
  allow();
}

/** Changes the conversation, and stays at its end if that was seen. */
function follow(change) {
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 40;
  change();
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}
