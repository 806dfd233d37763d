// Repeats a request; slowly while the page is not visible.

const HIDDEN_MS = 15_000;

/** Calls `work()` now, then again `delay()` ms after it was done. `failed(error | null)`: after each. */
export class Poll {
  #work;
  #delay;
  #failed;
  #timer = 0;
  #closed = false;
  #running = false;
  #failures = 0;
  #last = -Infinity;
  #seen = () => {
    if (document.visibilityState === "visible") this.now();
  };

  constructor(work, { delay, failed }) {
    this.#work = work;
    this.#delay = delay;
    this.#failed = failed;
    document.addEventListener("visibilitychange", this.#seen);
    this.now();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.#seen);
  }

  /** Within half a second, however often it is called. */
  soon() {
    if (this.#closed || this.#running) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.now(), Math.max(0, this.#last + 500 - performance.now()));
  }

  async now() {
    if (this.#closed || this.#running) return;
    clearTimeout(this.#timer);
    this.#running = true;
    this.#last = performance.now();
    try {
      await this.#work();
      this.#failures = 0;
      if (!this.#closed) this.#failed(null);
    } catch (error) {
      this.#failures += 1;
      if (!this.#closed) this.#failed(error);
    }
    this.#running = false;
    if (this.#closed) return;
    let wait = this.#failures === 0 ? this.#delay() : Math.min(15_000, 1000 * 2 ** this.#failures) * (0.5 + Math.random() / 2);
    if (document.visibilityState !== "visible") wait = Math.max(wait, HIDDEN_MS);
    this.#timer = setTimeout(() => this.now(), wait);
  }
}
