// The log itself: a toolbar, the rows, and what is known about their completeness.

import { EventStream, Problem, apiPath, hasToken, request, withQuery } from "./api.js";
import { h, setText } from "./dom.js";
import { count, plural } from "./format.js";
import { IndexedSource } from "./indexed.js";
import { ListedSource } from "./listed.js";
import { renderRow } from "./row.js";
import { Scroller } from "./scroller.js";

// A stream that is so many lines behind is begun again at the end: what lies between is fetched if it is looked at.
const BEHIND = 20_000;
const LEVELS = [["", "All levels"], ["info,warn,error,fatal", "Info and above"], ["warn,error,fatal", "Warnings and errors"], ["error,fatal", "Errors"]];

const preference = (name, fallback) => {
  const value = localStorage.getItem(`otto.${name}`);
  return value === null ? fallback : value === "1";
};

export class LogView {
  #options;
  #nodes = {};
  #scroller;
  #source = null;
  #stream = null;
  #streamed = 0;
  #shown = { run: null, live: false, filter: null, hash: "", summary: "", warn: false };
  #mark = null;
  #target = null;
  #wrap = preference("wrap", false);
  #times = preference("times", window.matchMedia("(min-width: 761px)").matches);
  #typing = 0;
  #search = { loading: false, searched: 0, error: null };
  #problem = "";
  #view = { first: 0, last: -1, length: 0 };
  #closed = false;
  #ended = false;
  #digits = 0;

  constructor(host, options) {
    this.#options = options;
    const n = this.#nodes;
    const toggle = (label, title, name, onclick) => h("button", { type: "button", class: `toggle ${name}`, title, "aria-pressed": "false", onclick }, label);
    n.query = h("input", { type: "search", class: "query", placeholder: "Filter lines", "aria-label": "Filter lines", autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: "400", oninput: () => this.#typed(), onkeydown: (event) => event.key === "Enter" && this.#apply() });
    n.regex = toggle(".*", "Regular expression", "regex", () => this.#flip(n.regex));
    n.exact = toggle("Aa", "Match case", "exact", () => this.#flip(n.exact));
    n.level = h("select", { "aria-label": "Level", onchange: () => this.#apply() }, ...LEVELS.map(([value, text]) => h("option", { value }, text)));
    n.source = h("select", { "aria-label": "Source", onchange: () => this.#apply() }, h("option", { value: "" }, "All output"), h("option", { value: "stdout" }, "stdout"), h("option", { value: "stderr" }, "stderr"));
    n.wrap = toggle("Wrap", "Wrap long lines (w)", "wrap", () => this.#setWrap(!this.#wrap));
    n.times = toggle("Time", "Timestamps (t)", "times", () => this.#setTimes(!this.#times));
    n.start = h("button", { type: "button", title: "First line (Home)", "aria-label": "First line", onclick: () => this.#toStart() }, "⤒");
    n.end = h("button", { type: "button", title: "Last line (End)", "aria-label": "Last line", onclick: () => this.#toEnd(false) }, "⤓");
    n.follow = toggle("Follow", "Follow new lines (f)", "follow", () => this.#toggleFollow());
    n.raw = h("a", { class: "button", hidden: true, title: "Download the exact bytes the job printed", onclick: (event) => this.#download(event) }, "Raw");
    n.error = h("p", { class: "field-error", role: "alert", hidden: true });
    n.viewport = h("div", { class: "viewport", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Lines", onkeydown: (event) => this.key(event, false) && (event.preventDefault(), event.stopPropagation()) });
    n.nothing = h("p", { class: "nothing", hidden: true });
    n.goto = h("form", { class: "goto", hidden: true, onsubmit: (event) => this.#gotoLine(event) }, h("label", null, "Line ", h("input", { inputmode: "numeric", pattern: "[0-9]*", size: 10, onblur: () => { n.goto.hidden = true; } })));
    n.summary = h("span", { class: "summary", role: "status" });
    n.place = h("span", { class: "place" });
    host.append(
      h("div", { class: "toolbar", role: "toolbar", "aria-label": "Log" },
        h("div", { class: "field" }, n.query, n.regex, n.exact),
        n.level, n.source,
        h("span", { class: "grow" }),
        h("div", { class: "group" }, n.wrap, n.times),
        h("div", { class: "group" }, n.start, n.end, n.follow),
        n.raw),
      n.error,
      h("div", { class: "frame" }, n.viewport, n.nothing, n.goto),
      h("div", { class: "foot" }, n.summary, h("span", { class: "grow" }), n.place),
    );
    n.viewport.addEventListener("rowresize", () => this.#scroller.redraw());
    n.viewport.addEventListener("click", (event) => this.#clicked(event));
    this.#scroller = new Scroller(n.viewport, {
      render: (row) => renderRow(row, { label: this.#options.label, href: this.#options.href, mark: this.#mark, target: this.#target }),
      onView: (view) => this.#viewed(view),
      onFollow: () => this.#drawFollow(),
    });
    this.#setWrap(this.#wrap);
    this.#setTimes(this.#times);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#typing);
    this.#stream?.close();
    this.#source?.close();
    this.#scroller.destroy();
    this.#options.lost("");
  }

  /** What to show now; called again with every news of the task. */
  show(next) {
    const before = this.#shown;
    this.#shown = next;
    const filter = JSON.stringify(next.filter);
    if (this.#source === null || filter !== JSON.stringify(before.filter)) this.#open();
    else if (this.#indexed) this.#news(next.run);
    if (this.#indexed && (next.hash !== before.hash || this.#target === null)) this.#toHash();
    this.#maybeStream();
    this.#drawFoot();
    this.#drawFollow();
  }

  get #indexed() {
    return this.#source instanceof IndexedSource;
  }

  get #filtering() {
    const { q, level, source } = this.#shown.filter;
    return Boolean(q || level || source);
  }

  #path(...more) {
    const { task, worker } = this.#options;
    return worker === null ? apiPath("tasks", task, "logs", ...more) : apiPath("tasks", task, "workers", worker, "logs", ...more);
  }

  // The filter as the API wants it.
  #query() {
    const { q, regex, exact, level, source } = this.#shown.filter;
    const query = { run: this.#options.run, level, source };
    if (q && regex) query.regex = exact ? q : `(?i)${q}`;
    else if (q && exact) query.q = q;
    else if (q) query.regex = `(?i)${q.replace(/[\\^$.*+?()[\]{}|#&~\s-]/g, (c) => (/\s/.test(c) ? (c === " " ? " " : `\\x{${c.charCodeAt(0).toString(16)}}`) : `\\${c}`))}`;
    return query;
  }

  #open() {
    this.#stream?.close();
    this.#stream = null;
    this.#source?.close();
    this.#problem = "";
    this.#ended = false;
    const { filter, live, failed, run, hash } = this.#shown;
    const n = this.#nodes;
    if (document.activeElement !== n.query) n.query.value = filter.q;
    n.regex.setAttribute("aria-pressed", String(filter.regex));
    n.exact.setAttribute("aria-pressed", String(filter.exact));
    n.level.value = filter.level;
    if (n.level.value !== filter.level) n.level.append(new Option(filter.level, filter.level, false, true));
    n.source.value = filter.source;
    this.#mark = highlighter(filter);
    this.#target = null;
    this.#drawRaw();
    this.#drawError(null);
    this.#search = { loading: false, searched: 0, error: null };
    if (this.#options.worker !== null && !this.#filtering) {
      this.#source = new IndexedSource({
        task: this.#options.task, worker: this.#options.worker, run: this.#options.run,
        changed: () => this.#scroller.update(),
        failed: (error) => this.#failed(error),
      });
      this.#scroller.setSource(this.#source);
      this.#streamed = run.last_sequence;
      this.#news(run);
      if (/^#L\d+$/.test(hash)) this.#scroller.setFollow(false);
      else if (live) this.#scroller.setFollow(true);
      else if (failed) this.#scroller.toEnd();
    } else {
      const source = new ListedSource({
        path: this.#path(), params: this.#query(),
        changed: () => this.#listedChanged(source),
        shifted: (n) => {
          this.#scroller.shifted(n);
          this.#listedChanged(source);
        },
        state: (state) => this.#searching(source, state),
      });
      this.#source = source;
      this.#scroller.setSource(source);
      if (live || failed) this.#toEnd(live);
      else source.loadStart();
    }
  }

  #listedChanged(source) {
    if (this.#source !== source) return;
    this.#scroller.update();
    this.#maybeStream();
    this.#drawNothing();
  }

  #searching(source, state) {
    if (this.#source !== source) return;
    this.#search = state;
    if (state.error) this.#failed(state.error);
    else this.#drawError(null);
    this.#drawNothing();
    this.#drawFoot();
  }

  #failed(error) {
    if (this.#closed) return;
    this.#drawError(error instanceof Problem && error.status >= 400 && error.status < 500 ? error : null);
    this.#options.lost(error && !(error instanceof Problem && error.status < 500) ? "Connection to the log server lost, trying again …" : "");
  }

  #news(run) {
    const note = run.finish || run.ended ? run.summary + (run.finish?.exit_code ? `; exit code ${run.finish.exit_code}` : "") : undefined;
    this.#source.setRun({ ...run, note });
    if (this.#stream && run.last_sequence - this.#streamed > BEHIND) {
      this.#stream.close();
      this.#stream = null;
      this.#streamed = run.last_sequence;
      this.#maybeStream();
    }
  }

  // A stream is open exactly while there is something to come that these rows would show.
  #maybeStream() {
    const source = this.#source;
    const wanted = this.#shown.live && !this.#ended && !this.#closed && (this.#indexed || (source.atEnd && source.position !== null));
    if (!wanted) {
      this.#stream?.close();
      this.#stream = null;
      return;
    }
    if (this.#stream) return;
    const start = this.#indexed ? { from: this.#streamed + 1 } : { after: source.position };
    const indexed = this.#indexed;
    const stream = new EventStream((last) => withQuery(this.#path("stream"), { ...this.#query(), ...(last ? {} : start) }), {
      onEvent: (type, data, id) => {
        if (this.#stream !== stream) return;
        if (type === "lines") {
          if (data.length > 0) this.#streamed = data[data.length - 1].sequence;
          source.addLines(data, id);
        } else if (type === "gap") {
          if (!indexed || data.run_id === this.#options.run) source.addGap(data, id);
        } else if (type === "event") {
          if (!indexed && !this.#filtering) source.addEvent(data, id);
          this.#options.news();
        } else if (type === "status") this.#options.news();
        else if (type === "end") {
          this.#ended = true;
          this.#options.news();
        }
      },
      onState: (state, detail) => {
        if (this.#stream !== stream && this.#stream !== null) return;
        if (state === "open" || state === "ended") this.#options.lost("");
        else if (state === "lost") this.#options.lost("Connection to the log server lost, trying again …");
        else if (state === "failed" && detail.error.body?.parameter === "after") {
          // The server no longer knows the place (its data are others): from the beginning.
          this.#open();
          return;
        } else if (state === "failed") this.#failed(detail.error);
        if (state === "ended" || state === "failed") this.#ended = true;
      },
    });
    this.#stream = stream;
  }

  key(event, typing) {
    const n = this.#nodes;
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (typing) {
      if (event.key === "Escape" && event.target === n.query) {
        n.query.value = "";
        this.#apply();
        n.viewport.focus();
        return true;
      }
      return false;
    }
    const onButton = event.target.closest?.("button, a, summary");
    switch (event.key) {
      case "/": n.query.focus(); n.query.select(); return true;
      case "f": this.#toggleFollow(); return true;
      case "w": this.#setWrap(!this.#wrap); return true;
      case "t": this.#setTimes(!this.#times); return true;
      case "Home": case "g": this.#toStart(); return true;
      case "End": case "G": this.#toEnd(false); return true;
      case "j": case "ArrowDown": this.#scroller.by(1); return true;
      case "k": case "ArrowUp": this.#scroller.by(-1); return true;
      case "PageDown": this.#scroller.by(this.#scroller.page - 1); return true;
      case " ": if (onButton) return false; this.#scroller.by(event.shiftKey ? 1 - this.#scroller.page : this.#scroller.page - 1); return true;
      case "PageUp": this.#scroller.by(1 - this.#scroller.page); return true;
      case ":": if (!this.#indexed) return false; n.goto.hidden = false; n.goto.querySelector("input").focus(); return true;
      case "Escape": if (this.#filtering) { n.query.value = ""; n.level.value = ""; n.source.value = ""; this.#apply(); return true; } return false;
      default: return false;
    }
  }

  #typed() {
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => this.#apply(), 300);
  }

  #flip(button) {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    if (this.#nodes.query.value) this.#apply();
  }

  #apply() {
    clearTimeout(this.#typing);
    const n = this.#nodes;
    const on = (button) => button.getAttribute("aria-pressed") === "true";
    const filter = { q: n.query.value, regex: on(n.regex), exact: on(n.exact), level: n.level.value, source: n.source.value };
    const { q, regex, exact, level, source } = this.#shown.filter;
    if (filter.q === q && filter.level === level && filter.source === source && (!q || (filter.regex === regex && filter.exact === exact))) return;
    this.#options.filtered(filter);
  }

  #setWrap(wrap) {
    this.#wrap = wrap;
    localStorage.setItem("otto.wrap", wrap ? "1" : "0");
    this.#nodes.viewport.classList.toggle("wrapped", wrap);
    this.#nodes.wrap.setAttribute("aria-pressed", String(wrap));
    this.#scroller.setWrap(wrap);
  }

  #setTimes(times) {
    this.#times = times;
    localStorage.setItem("otto.times", times ? "1" : "0");
    this.#nodes.viewport.classList.toggle("timed", times);
    this.#nodes.times.setAttribute("aria-pressed", String(times));
    this.#scroller.redraw();
  }

  #toggleFollow() {
    if (this.#scroller.follow) this.#scroller.setFollow(false);
    else this.#toEnd(true);
  }

  #toStart() {
    this.#scroller.toStart();
    if (!this.#indexed && !this.#source.atStart) {
      this.#source.loadStart();
      this.#maybeStream();
    }
  }

  async #toEnd(follow) {
    const source = this.#source;
    if (!this.#indexed && (!source.atEnd || source.position === null)) {
      this.#scroller.setFollow(follow);
      await source.loadEnd();
      if (this.#source !== source) return;
    }
    if (follow || this.#shown.live) this.#scroller.setFollow(true);
    else this.#scroller.toEnd();
    this.#maybeStream();
  }

  #toHash() {
    const match = /^#L(\d+)$/.exec(this.#shown.hash);
    if (!match) {
      if (this.#target !== null && this.#target !== 0) {
        this.#target = 0;
        this.#scroller.redraw();
      }
      this.#target = 0;
      return;
    }
    const row = this.#source.rowOf(Number(match[1]));
    if (row === -1) return;
    this.#target = Number(match[1]);
    this.#scroller.reveal(row);
    this.#scroller.redraw();
  }

  #gotoLine(event) {
    event.preventDefault();
    const input = this.#nodes.goto.querySelector("input");
    const line = Number(input.value);
    this.#nodes.goto.hidden = true;
    input.value = "";
    this.#nodes.viewport.focus();
    if (line >= 1) this.#options.goTo(`${location.pathname}${location.search}#L${Math.min(line, Math.max(1, this.#source.last))}`);
  }

  // A line number is a link to that line in its whole log.
  #clicked(event) {
    const link = event.target.closest?.("a.ln");
    if (!link || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    this.#scroller.setFollow(false);
    this.#options.goTo(link.getAttribute("href"));
  }

  #viewed(view) {
    this.#view = view;
    // Wide enough for the largest number in it, so that nothing moves sideways while scrolling.
    const largest = this.#indexed ? this.#source.last : ((view.last >= 0 && this.#source.get(view.last)?.sequence) || 0);
    this.#digits = Math.max(this.#digits, String(largest).length);
    this.#nodes.viewport.style.setProperty("--digits", `${Math.max(4, this.#digits)}ch`);
    this.#drawNothing();
    this.#drawFoot();
  }

  #drawFollow() {
    const { follow } = this.#scroller;
    this.#nodes.follow.setAttribute("aria-pressed", String(follow && this.#shown.live));
    this.#nodes.follow.hidden = !this.#shown.live;
  }

  #drawNothing() {
    const empty = this.#source.length === 0;
    this.#nodes.nothing.hidden = !empty;
    if (!empty) return;
    let text = "This worker has printed nothing yet.";
    if (this.#search.loading) text = this.#search.searched > 0 ? `Searching … ${count(this.#search.searched)} lines so far` : "Loading …";
    else if (this.#filtering) text = this.#shown.live ? "No line matches so far; new ones appear here." : "No line matches.";
    else if (!this.#shown.live) text = "Nothing was printed.";
    setText(this.#nodes.nothing, text);
  }

  #drawFoot() {
    const n = this.#nodes;
    setText(n.summary, this.#problem || this.#shown.summary);
    n.summary.classList.toggle("warn", Boolean(this.#problem || this.#shown.warn));
    const { first, last, length } = this.#view;
    if (length === 0) setText(n.place, "");
    else if (this.#indexed) setText(n.place, `${count(this.#source.sequenceAt(first))}–${count(this.#source.sequenceAt(last))} of ${count(this.#source.last)}`);
    else {
      const what = this.#filtering ? "matching line" : "line";
      const whole = this.#source.atStart && this.#source.atEnd;
      setText(n.place, `${plural(length, what)}${whole ? "" : this.#search.loading ? ", loading more" : " here, more on scrolling"}`);
    }
  }

  #drawError(problem) {
    const n = this.#nodes;
    const bad = problem !== null && problem !== undefined;
    n.error.hidden = !bad;
    setText(n.error, bad ? problem.message : "");
    if (bad) n.query.setAttribute("aria-invalid", "true");
    else n.query.removeAttribute("aria-invalid");
  }

  #drawRaw() {
    const { worker, run } = this.#options;
    this.#nodes.raw.hidden = worker === null;
    if (worker === null) return;
    this.#nodes.raw.href = withQuery(this.#path("raw"), { run, source: this.#shown.filter.source });
    this.#nodes.raw.download = `${worker}.log`;
  }

  // A link cannot carry the token; then the bytes are fetched here, straight into a file where the browser can do that.
  async #download(event) {
    if (!hasToken()) return;
    event.preventDefault();
    const { href, download: name } = this.#nodes.raw;
    try {
      if (window.showSaveFilePicker) {
        const file = await window.showSaveFilePicker({ suggestedName: name });
        const [response, target] = await Promise.all([request(href), file.createWritable()]);
        await response.body.pipeTo(target);
      } else {
        const url = URL.createObjectURL(await (await request(href)).blob());
        h("a", { href: url, download: name }).click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        this.#problem = `The download failed: ${error.message}`;
        this.#drawFoot();
      }
    }
  }
}

// What to mark in the rows. The server decides what matches; where JavaScript reads the expression differently, nothing is
// marked rather than the wrong thing.
function highlighter({ q, regex, exact }) {
  if (!q) return null;
  try {
    return new RegExp(regex ? q : q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), exact ? "g" : "gi");
  } catch {
    return null;
  }
}
