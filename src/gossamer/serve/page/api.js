// The service's API: requests with the user's key, answers as they stream, and what went wrong in plain words.

const KEY = "gossamer-key";
export const TOO_LONG = "context_length_exceeded";

// What a request failed of. `message` is for the user; `status` 0: no answer came at all.
export class Problem extends Error {
  constructor(message, status, again = null, code = null) {
    super(message);
    this.status = status;
    this.again = again; // seconds after which another try is worth it
    this.code = code; // the API's word for it
  }
}

export class Api {
  constructor() {
    this.base = new URL("v1/", document.baseURI);
    this.key = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
    this.rejected = false; // the last key was not known
  }

  // Use a key until the tab closes or, with `keep`, until it is forgotten. An empty one forgets.
  setKey(key, keep) {
    this.key = key;
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (key) (keep ? localStorage : sessionStorage).setItem(KEY, key);
  }

  async model() {
    const answer = await this.request("models", {});
    return (await answer.json()).data[0];
  }

  // Send what is answered at once.
  async send(path, body) {
    const answer = await this.request(path, this.posted(body));
    return answer.json();
  }

  posted(body) {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }

  // The objects of a streamed answer, one by one.
  async *stream(path, body, signal) {
    const answer = await this.request(path, {
      ...this.posted({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const item = JSON.parse(data);
      if (item.error) throw new Problem(inWords(500, item.error, null), 500);
      yield item;
    }
    throw new Problem("The connection broke off before the answer was complete.", 0);
  }

  async request(path, options) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let answer;
    try {
      answer = await fetch(new URL(path, this.base), { ...options, headers, cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server cannot be reached. Is it still running?", 0);
    }
    if (answer.ok) return answer;
    const again = Number(answer.headers.get("Retry-After")) || null;
    const error = await answer.json().then((body) => body.error ?? {}, () => ({}));
    this.rejected = error.code === "invalid_api_key";
    throw new Problem(inWords(answer.status, error, again), answer.status, again, error.code);
  }
}

// The data of server-sent events; comments, which keep an idle connection open, are left out.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Problem("The connection broke off before the answer was complete.", 0);
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // what is left unread, nobody wants
  }
}

function inWords(status, error, again) {
  const said = typeof error.message === "string" && error.message ? error.message : `status ${status}`;
  const when = again ? ` Try again in ${again === 1 ? "a second" : `${again} seconds`}.` : " Try again later.";
  if (error.code === TOO_LONG) {
    return `This conversation no longer fits the model: ${said}. Begin a new one, or edit an earlier message.`;
  }
  if (status === 401) return "The server asks for an API key.";
  if (status === 413) return "This is more than the server takes in one request. Send less.";
  if (status === 429) return `Too many people are asking at the moment.${when}`;
  if (status === 507) return `The server did not keep this: ${said}.`;
  if (status === 503) return `The server cannot answer just now: ${said}.${when}`;
  if (status >= 500) return `The server failed at this answer: ${said}.`;
  return `The server did not take this: ${said}.`;
}
