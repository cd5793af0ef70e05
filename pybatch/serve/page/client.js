// Requests to the server, with the key that it may ask for.

const SECONDS = 8;  // after which an answer is no longer waited for; streams have no such limit
const KEY = "pybatch-key";

/** An answer with an error. status: that of HTTP. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const storedKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Asks the server. Raises ServerError for an error that it tells, TypeError or DOMException where it does not answer. */
async function send(path, options) {
  const key = storedKey.get();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  if (response.ok) return response;
  throw new ServerError(response.status, await told(response));
}

/** What an answer says of its error. */
async function told(response) {
  try {
    const { error } = await response.json();
    return String(error.message);
  } catch {
    return `${response.status} ${response.statusText}`.trim();
  }
}

export async function get(path) {
  return (await send(path, { signal: AbortSignal.timeout(1000 * SECONDS) })).json();
}

const posted = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

export async function post(path, body = {}) {
  return (await send(path, { ...posted(body), signal: AbortSignal.timeout(1000 * SECONDS) })).json();
}

/** The events of an answer that is streamed, each read from JSON. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...posted(body), signal });
  for await (const data of events(response.body.pipeThrough(new TextDecoderStream()))) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(response.status, String(event.error.message));
    yield event;
  }
}

/** The data of server-sent events, from pieces of text that end anywhere. */
export async function* events(pieces) {
  const reader = pieces.getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const whole = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
