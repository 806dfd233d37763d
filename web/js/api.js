// Talks to the log server: JSON, and Server-Sent Events read with fetch so that they carry the token.

const KEY = "otto.token";
let asking = null;

/** An error answer (RFC 9457). */
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail || body?.title || `the log server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

/** Whether a token is in use. */
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

function ask(why) {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#token-dialog");
    const input = dialog.querySelector("#token-input");
    if (why) dialog.querySelector("#token-why").textContent = why;
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(KEY, input.value.trim());
      input.value = "";
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

/** fetch with the token; asks for it when the server wants one. */
export async function request(path, { signal, headers = {} } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const all = token === null ? headers : { ...headers, Authorization: `Bearer ${token}` };
    const response = await fetch(path, { signal, headers: all, cache: "no-store", credentials: "omit", redirect: "error" });
    if (response.status !== 401) {
      if (response.ok) return response;
      let body = null;
      try {
        body = await response.json();
      } catch {
        // Not ours: a proxy's page. The status says enough.
      }
      throw new Problem(response.status, body);
    }
    // Another request may have asked and got a token meanwhile.
    if (sessionStorage.getItem(KEY) === token) {
      if (token !== null) sessionStorage.removeItem(KEY);
      await ask(token === null ? undefined : "The log server did not accept this token. Please give another one.");
    }
    signal?.throwIfAborted();
  }
}

export async function getJson(path, options = {}) {
  const response = await request(path, { ...options, headers: { Accept: "application/json" } });
  return response.json();
}

/** "/api/v1/tasks/a%2Fb/workers/w" of parts. */
export function apiPath(...parts) {
  return `/api/v1/${parts.map((part) => encodeURIComponent(part)).join("/")}`;
}

/** Appends parameters which have a value; lists are joined by commas. */
export function withQuery(path, params) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0)) continue;
    query.set(name, Array.isArray(value) ? value.join(",") : String(value));
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// The server sends a comment at least every 15 s.
const SILENCE_MS = 40_000;
// A browser has few connections for one server, shared by all its tabs: one that is not looked at gives its own back.
const HIDDEN_MS = 15_000;

const seen = (signal) =>
  new Promise((resolve) => {
    const look = () => {
      if (document.visibilityState !== "visible" && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });

/**
 * A stream of events that reconnects by itself and resumes after the last event it has seen.
 * `url(lastId)`: where to connect. `onEvent(type, data, id)`: data parsed; `id`: where the stream goes on after it. `onState(state, detail)`: "connecting", "open",
 * "lost" (detail: { retryAt, error }), "ended".
 */
export class EventStream {
  #url;
  #onEvent;
  #onState;
  #control = new AbortController();
  #wake = null;
  #lastId = "";
  #delay = 500;
  #resting = false;

  constructor(url, { onEvent, onState }) {
    this.#url = url;
    this.#onEvent = onEvent;
    this.#onState = onState;
    queueMicrotask(() => this.#run());
  }

  close() {
    this.#control.abort();
    this.#wake?.();
  }

  /** Tries again at once if it waits. */
  hurry() {
    this.#wake?.();
  }

  async #run() {
    const closed = this.#control.signal;
    while (!closed.aborted) {
      await seen(closed);
      if (closed.aborted) return;
      this.#onState("connecting");
      let error = null;
      try {
        if (await this.#connect(closed)) {
          this.#onState("ended");
          return;
        }
      } catch (caught) {
        error = caught;
      }
      if (closed.aborted) return;
      if (this.#resting) {
        this.#resting = false;
        continue;
      }
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && ![408, 429].includes(error.status)) {
        this.#onState("failed", { error });
        return;
      }
      const wait = this.#delay * (0.5 + Math.random() / 2);
      this.#delay = Math.min(this.#delay * 2, 15_000);
      this.#onState("lost", { retryAt: Date.now() + wait, error });
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
        window.addEventListener("online", this.#wake, { once: true });
      });
      window.removeEventListener("online", this.#wake);
      this.#wake = null;
    }
  }

  // True: the log is at its end and there is nothing to come back for.
  async #connect(closed) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    closed.addEventListener("abort", stop);
    let rest = 0;
    const visibility = () => {
      clearTimeout(rest);
      if (document.visibilityState === "visible") return;
      rest = setTimeout(() => {
        this.#resting = true;
        stop();
      }, HIDDEN_MS);
    };
    document.addEventListener("visibilitychange", visibility);
    let watchdog = setTimeout(stop, SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
      const response = await request(this.#url(this.#lastId), { signal: attempt.signal, headers });
      if (response.status === 204) return true;
      this.#onState("open");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      let finished = false;
      let worked = performance.now();
      for (;;) {
        const { value, done } = await reader.read();
        clearTimeout(watchdog);
        if (done) return finished;
        watchdog = setTimeout(stop, SILENCE_MS);
        this.#delay = 500;
        buffer += value;
        let from = 0;
        for (let end = buffer.indexOf("\n\n", from); end !== -1; end = buffer.indexOf("\n\n", from)) {
          const type = this.#dispatch(buffer.slice(from, end));
          if (type === "end") finished = true;
          from = end + 2;
          if (closed.aborted) return false;
        }
        buffer = buffer.slice(from);
        // Reads that are already there resolve without the browser getting to paint.
        if (performance.now() - worked > 12) {
          await new Promise((resolve) => setTimeout(resolve, 0));
          worked = performance.now();
        }
      }
    } finally {
      clearTimeout(watchdog);
      clearTimeout(rest);
      document.removeEventListener("visibilitychange", visibility);
      closed.removeEventListener("abort", stop);
      attempt.abort();
    }
  }

  #dispatch(text) {
    let type = "message";
    let id = null;
    const data = [];
    for (const line of text.split("\n")) {
      if (line.startsWith(":")) continue;
      const colon = line.indexOf(":");
      const field = colon === -1 ? line : line.slice(0, colon);
      let value = colon === -1 ? "" : line.slice(colon + 1);
      if (value.startsWith(" ")) value = value.slice(1);
      if (field === "event") type = value;
      else if (field === "data") data.push(value);
      else if (field === "id") id = value;
    }
    if (data.length > 0) {
      const parsed = JSON.parse(data.join("\n"));
      if (type === "end" && parsed.resume) type = "pause";
      this.#onEvent(type, parsed, id ?? this.#lastId);
    }
    // After the event has been taken, so that a failure in between repeats it rather than losing it.
    if (id !== null) this.#lastId = id;
    return type;
  }
}
