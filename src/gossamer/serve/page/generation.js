// One answer in the making: reads the stream, tells the pieces, and measures.

import { Problem } from "./api.js";

export class Generation {
  // `body()` promises the request's fields; `take(kind, text)` gets each piece; kind: "text" or "reasoning".
  constructor(api, path, body, take) {
    this.api = api;
    this.path = path;
    this.body = body;
    this.take = take;
    this.aborter = new AbortController();
    this.pieces = 0; // about as many as tokens: a piece is a token, or several that only together make text
    this.usage = null;
    this.began = performance.now();
    this.firstAt = null;
  }

  stop() {
    this.aborter.abort();
  }

  get secondsTo() {
    const now = performance.now();
    return { first: ((this.firstAt ?? now) - this.began) / 1000, total: (now - this.began) / 1000 };
  }

  // Until the answer ends: { end: "stop" | "length" | "stopped" | "problem", problem, usage, seconds }.
  async run() {
    let end = "stop";
    let problem = null;
    try {
      for await (const item of this.api.stream(this.path, await this.body(), this.aborter.signal)) {
        end = this.read(item) ?? end;
      }
    } catch (error) {
      if (error.name === "AbortError") {
        end = "stopped";
      } else if (error instanceof Problem) {
        end = "problem";
        problem = error;
      } else {
        throw error;
      }
    }
    return { end, problem, usage: this.usage, seconds: this.firstAt === null ? null : this.secondsTo };
  }

  read(item) {
    if (item.usage) {
      this.usage = { prompt: item.usage.prompt_tokens, completion: item.usage.completion_tokens,
        cached: item.usage.prompt_tokens_details?.cached_tokens ?? 0 };
    }
    const [choice] = item.choices;
    if (!choice) return null;
    const { reasoning_content: reasoning, content } = choice.delta ?? { content: choice.text };
    if (reasoning) this.piece("reasoning", reasoning);
    if (content) this.piece("text", content);
    return choice.finish_reason;
  }

  piece(kind, text) {
    this.firstAt ??= performance.now();
    this.pieces += 1;
    this.take(kind, text);
  }
}
