// How fast an answer comes. What the server counts replaces what the page counted as soon as it is known.

export class Meter {
  #begin = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;
  #usage = null;
  #timings = null;
  reason = null;

  /** The new text in a chunk. */
  take(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    const choice = chunk.choices?.[0];
    this.reason = choice?.finish_reason ?? this.reason;
    const text = choice?.delta?.content;
    if (typeof text !== "string" || !text) return "";
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
    return text;
  }

  /** While the answer is made: one piece of the stream counts as one token. */
  now() {
    if (this.#first === null) return `reading · ${seconds(performance.now() - this.#begin)}`;
    return join(`${this.#pieces} tok`, speed(this.#measured()), this.#firstToken());
  }

  /** Afterwards. context: what the model can hold, if the server tells. */
  summary(context) {
    const usage = this.#usage ?? {};
    const times = this.#timings ?? {};
    const tokens = usage.completion_tokens ?? this.#pieces;
    const used = (usage.prompt_tokens ?? 0) + (usage.completion_tokens ?? 0);
    return join(
      `${tokens} tok`,
      speed(times.predicted_per_second ?? this.#measured()),
      this.#first !== null && this.#firstToken(),
      times.image_ms > 0 && `picture ${milliseconds(times.image_ms)}`,
      used > 0 && `context ${used}${context ? `/${context}` : ""}`,
      { length: "cut at the length limit", stopped: "stopped", error: "broke off" }[this.reason],
    );
  }

  /** Tokens a second between the first and the last. */
  #measured() {
    return this.#pieces > 1 ? (1000 * (this.#pieces - 1)) / Math.max(this.#last - this.#first, 1) : 0;
  }

  #firstToken() {
    return `first token ${milliseconds(this.#first - this.#begin)}`;
  }
}

const join = (...parts) => parts.filter(Boolean).join(" · ");
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const milliseconds = (ms) => (ms < 10_000 ? `${Math.round(ms)} ms` : seconds(ms));
const speed = (rate) => rate > 0 && `${rate.toFixed(rate < 100 ? 1 : 0)} tok/s`;
