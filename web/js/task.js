// One task: its workers with the state of their logs, and the log of one worker or of all, merged.

import { Problem, apiPath, getJson, withQuery } from "./api.js";
import { h, setText } from "./dom.js";
import { about, count, dateTime, eventText, plural, state } from "./format.js";
import { LogView } from "./logview.js";
import { connection } from "./main.js";
import { Poll } from "./poll.js";
import { badge, taskState } from "./tasks.js";

const SHOWN_WORKERS = 200;
const WIDE = window.matchMedia("(min-width: 761px)");

export class TaskView {
  #task;
  #navigate;
  #data = null;
  #selected = { worker: null, run: null };
  #params = new URLSearchParams();
  #hash = "";
  #log = null;
  #logKey = "";
  #explained = "";
  #poll;
  #closed = new AbortController();
  #lost = { poll: null, stream: "" };
  #labels = new Map();
  #nodes = {};
  #shown = SHOWN_WORKERS;

  constructor(main, task, { navigate }) {
    this.#task = task;
    this.#navigate = navigate;
    const n = this.#nodes;
    n.state = h("span", { class: "task-state" });
    n.context = h("p", { class: "context" });
    n.find = h("input", { type: "search", placeholder: "Find a worker", "aria-label": "Find a worker", autocomplete: "off", hidden: true, oninput: () => this.#drawWorkers() });
    n.list = h("ul", { class: "workers" });
    n.more = h("button", { type: "button", hidden: true, onclick: () => { this.#shown += SHOWN_WORKERS; this.#drawWorkers(); } });
    n.summary = h("summary", null, "Workers");
    n.workers = h("details", { class: "side", open: WIDE.matches }, n.summary, n.find, n.list, n.more);
    n.head = h("div", { class: "log-head" });
    n.body = h("div", { class: "log-body" });
    main.append(
      h("section", { class: "task" },
        h("div", { class: "task-head" }, h("h1", { title: task }, task), n.state, n.context),
        n.workers,
        h("section", { class: "log", "aria-label": "Log" }, n.head, n.body)),
    );
    this.#poll = new Poll(() => this.#load(), {
      delay: () => (this.#live ? ((this.#data?.workers.length ?? 0) > 300 ? 5000 : 1500) : 10_000),
      failed: (error) => this.#failed(error),
    });
  }

  accepts(params) {
    return params.get("task") === this.#task;
  }

  show(params, hash) {
    this.#params = params;
    this.#hash = hash;
    const worker = params.get("worker");
    // On a narrow screen the list lies over the log: it is done with when one was chosen.
    if (worker !== this.#selected.worker && !WIDE.matches) this.#nodes.workers.open = false;
    this.#selected = { worker, run: params.get("run") };
    this.#draw();
  }

  close() {
    this.#closed.abort();
    this.#poll.close();
    this.#log?.close();
    connection("");
  }

  key(event, typing) {
    if (!typing && (event.key === "[" || event.key === "]")) {
      const ids = [null, ...(this.#data?.workers ?? []).map((worker) => worker.worker_id)];
      const at = ids.indexOf(this.#worker?.worker_id ?? null) + (event.key === "]" ? 1 : -1);
      if (at >= 0 && at < ids.length) this.#navigate(this.#address(ids[at]), { replace: true });
      return true;
    }
    return this.#log?.key(event, typing) ?? false;
  }

  get #live() {
    return !this.#data || !this.#data.task.state;
  }

  // The worker whose log is shown; null: all.
  get #worker() {
    const workers = this.#data?.workers ?? [];
    if (this.#selected.worker !== null) return workers.find((worker) => worker.worker_id === this.#selected.worker) ?? null;
    return workers.length === 1 ? workers[0] : null;
  }

  #address(worker, run) {
    const query = new URLSearchParams({ task: this.#task });
    if (worker !== null) query.set("worker", worker);
    if (run) query.set("run", run);
    for (const name of ["q", "re", "cs", "level", "source"]) if (this.#params.has(name)) query.set(name, this.#params.get(name));
    return `/?${query}`;
  }

  async #load() {
    this.#data = await getJson(apiPath("tasks", this.#task, "workers"), { signal: this.#closed.signal });
    this.#labels = labels(this.#data.workers);
    this.#draw();
  }

  #failed(error) {
    if (error instanceof Problem && error.status === 404) {
      this.#log?.close();
      this.#log = null;
      this.#logKey = "";
      this.#explain(`${error.message}. It appears here with its first event or line; this page keeps looking.`);
      error = null;
    } else if (error && !this.#data) this.#explain(`The task cannot be read: ${error.message}`);
    this.#lost.poll = error;
    this.#sayConnection();
  }

  #sayConnection() {
    connection(this.#lost.stream || (this.#lost.poll ? "Connection to the log server lost, trying again …" : ""));
  }

  #explain(text) {
    if (this.#explained === text) return;
    this.#explained = text;
    this.#nodes.head.replaceChildren();
    this.#nodes.body.replaceChildren(h("p", { class: "empty" }, text));
  }

  #draw() {
    if (!this.#data) return;
    this.#explained = "";
    const { task } = this.#data;
    const name = taskState(task);
    if (this.#nodes.state.dataset.name !== name) {
      this.#nodes.state.dataset.name = name;
      this.#nodes.state.replaceChildren(badge(name));
      document.title = `${state(name)[0]} ${this.#task} – Ottoscaler logs`;
    }
    const { repository, commit_sha: commit, triggered_by: by, reason } = task.context;
    setText(this.#nodes.context, [repository && commit ? `${repository}@${commit.slice(0, 12)}` : repository || commit, by && `triggered by ${by}`, reason, `since ${dateTime(task.first_seen_at)}`].filter(Boolean).join(" · "));
    this.#drawWorkers();
    this.#drawLog();
  }

  #drawWorkers() {
    const n = this.#nodes;
    const { workers } = this.#data;
    const wanted = n.find.value.trim().toLowerCase();
    const matching = workers.filter((worker) => wanted === "" || `${worker.worker_id} ${this.#labels.get(worker.worker_id)} ${worker.state}`.toLowerCase().includes(wanted));
    const selected = this.#worker?.worker_id ?? null;
    n.find.hidden = workers.length < 12;
    setText(n.summary, `${plural(workers.length, "worker")}${selected === null || workers.length === 1 ? "" : ` – ${this.#labels.get(selected)} shown`}`);
    const items = [];
    if (workers.length > 1) items.push(this.#item(null, selected === null, "All workers", "merged", null));
    for (const worker of matching.slice(0, this.#shown)) {
      items.push(this.#item(worker.worker_id, worker.worker_id === selected, this.#labels.get(worker.worker_id), worker.summary, worker));
    }
    // Only what differs is touched: focus and selection stay.
    const old = [...n.list.children];
    items.forEach((item, i) => {
      if (!old[i]) n.list.append(item);
      else if (!old[i].isEqualNode(item)) old[i].replaceWith(item);
    });
    for (const extra of old.slice(items.length)) extra.remove();
    n.more.hidden = matching.length <= this.#shown;
    setText(n.more, `Show more (${count(matching.length - this.#shown)} left)`);
  }

  #item(id, current, label, summary, worker) {
    const [sign, word, kind] = worker ? state(worker.state) : ["≡", "", "off"];
    return h("li", null,
      h("a", { href: this.#address(id), "data-link": "", "aria-current": current ? "true" : null, title: id },
        h("span", { class: `sign ${kind}`, "aria-hidden": "true" }, sign),
        h("span", { class: "who" }, label, worker ? h("span", { class: "word" }, ` ${word}${worker.runs.length > 0 ? about(worker.failure_class) : ""}`) : null),
        h("span", { class: "what" }, summary)));
  }

  #drawLog() {
    const worker = this.#worker;
    if (this.#selected.worker !== null && worker === null) {
      this.#log?.close();
      this.#log = null;
      this.#logKey = "";
      this.#explain(`This task has no worker “${this.#selected.worker}”.`);
      return;
    }
    this.#drawHead(worker);
    const runs = worker?.runs ?? [];
    const run = worker && (runs.find((run) => run.run_id === this.#selected.run) ?? runs[runs.length - 1] ?? null);
    if (worker ? runs.length === 0 : this.#data.workers.every((worker) => worker.runs.length === 0)) {
      this.#log?.close();
      this.#log = null;
      this.#logKey = "";
      this.#drawWhy(worker);
      return;
    }
    const filter = { q: this.#params.get("q") ?? "", regex: this.#params.get("re") === "1", exact: this.#params.get("cs") === "1", level: this.#params.get("level") ?? "", source: this.#params.get("source") ?? "" };
    const key = JSON.stringify([worker?.worker_id ?? null, run?.run_id ?? null]);
    if (this.#logKey !== key) {
      this.#log?.close();
      this.#logKey = key;
      this.#nodes.body.replaceChildren();
      this.#log = new LogView(this.#nodes.body, {
        task: this.#task,
        worker: worker?.worker_id ?? null,
        run: run?.run_id ?? null,
        label: (row) => (this.#worker ? "" : (this.#labels.get(row.worker_id) ?? row.worker_id ?? "")),
        href: (row) => `${withQuery("/", { task: this.#task, worker: row.worker_id, run: this.#manyRuns(row.worker_id) ? row.run_id : null })}#L${row.sequence}`,
        filtered: (changed) => this.#setFilter(changed),
        goTo: (url) => this.#navigate(url),
        lost: (text) => {
          this.#lost.stream = text;
          this.#sayConnection();
        },
        news: () => this.#poll.soon(),
      });
    }
    const failed = worker ? worker.state === "failed" : this.#data.task.state === "failed";
    this.#log.show({ run, live: worker ? !run.finish && (run.connected || this.#live) : this.#live, failed, filter, hash: this.#hash, summary: worker ? run.summary : this.#summary(), warn: (worker ? [run] : this.#data.workers.flatMap((one) => one.runs)).some((one) => one.gaps.length > 0 || (one.ended && !one.complete)) });
  }

  #manyRuns(id) {
    return (this.#data.workers.find((worker) => worker.worker_id === id)?.runs.length ?? 0) > 1;
  }

  #summary() {
    const runs = this.#data.workers.flatMap((worker) => worker.runs);
    const lines = runs.reduce((sum, run) => sum + run.lines, 0);
    const complete = runs.filter((run) => run.complete).length;
    return `${plural(lines, "line")} of ${plural(this.#data.workers.length, "worker")}; ${complete === runs.length ? "all logs are complete" : `${count(complete)} of ${plural(runs.length, "log")} complete`}`;
  }

  #setFilter(filter) {
    const query = new URLSearchParams(location.search);
    const set = (name, value) => (value ? query.set(name, value) : query.delete(name));
    set("q", filter.q);
    set("re", filter.q && filter.regex ? "1" : "");
    set("cs", filter.q && filter.exact ? "1" : "");
    set("level", filter.level);
    set("source", filter.source);
    this.#navigate(`/?${query}`, { replace: true });
  }

  // Above the log: who it is of and how that worker is doing.
  #drawHead(worker) {
    const parts = [];
    if (worker) {
      parts.push(badge(worker.state), h("span", { class: "id" }, worker.worker_id));
      if (worker.state_message && worker.runs.length > 0) parts.push(h("span", { class: "say" }, worker.state_message + about(worker.failure_class)));
      if (worker.runs.length > 1) {
        const runs = worker.runs;
        const current = this.#selected.run ?? runs[runs.length - 1].run_id;
        parts.push(h("select", { "aria-label": "Run", onchange: (event) => this.#navigate(this.#address(worker.worker_id, event.target.value)) },
          ...runs.map((run, i) => h("option", { value: run.run_id, selected: run.run_id === current }, `Run ${i + 1} of ${runs.length}`))));
      }
    }
    const events = this.#data.events.filter((event) => (worker ? event.worker_id === worker.worker_id || !event.worker_id : !event.worker_id || ["failed", "waiting", "retrying", "troubled"].includes(event.type)));
    if (events.length > 0 && (worker?.runs.length ?? 1) > 0) {
      const open = this.#nodes.head.querySelector("details")?.open ?? false;
      parts.push(h("details", { class: "events", open }, h("summary", null, plural(events.length, "event")), eventList(events, worker ? null : this.#labels)));
    }
    const fresh = h("div", { class: "log-head" }, ...parts);
    if (!fresh.isEqualNode(this.#nodes.head)) {
      const focused = this.#nodes.head.contains(document.activeElement);
      if (focused && document.activeElement.tagName === "SELECT") return;
      this.#nodes.head.replaceChildren(...fresh.childNodes);
    }
  }

  // Where the log would be: why there is none (yet).
  #drawWhy(worker) {
    const events = this.#data.events.filter((event) => !worker || event.worker_id === worker.worker_id || !event.worker_id);
    const text = worker ? worker.summary.replace(/^./, (c) => c.toUpperCase()) : "No worker of this task has printed anything yet.";
    const fresh = h("div", { class: "why" }, h("p", { class: "lead" }, text), events.length > 0 ? eventList(events, worker ? null : this.#labels) : null);
    if (this.#nodes.body.firstChild?.isEqualNode(fresh)) return;
    this.#nodes.body.replaceChildren(fresh);
  }
}

function eventList(events, labels) {
  const last = events.slice(-500);
  return h("ol", { class: "event-list" },
    events.length > last.length ? h("li", null, `${count(events.length - last.length)} earlier ones are not shown`) : null,
    ...last.map((event) => h("li", { class: ["failed", "waiting", "event_lost"].includes(event.type) || (event.type === "troubled" && event.failure_class) ? "bad" : null },
      h("time", { datetime: event.time, title: dateTime(event.time) }, dateTime(event.time)),
      " ",
      labels && event.worker_id ? h("b", null, `${labels.get(event.worker_id) ?? event.worker_id}: `) : null,
      eventText(event))));
}

// Short names: w0, w1, and w1.2 for a second attempt, where the scaler told index and attempt; else the id, shortened.
function labels(workers) {
  const names = new Map();
  for (const worker of workers) {
    if (worker.index !== null && worker.attempt !== null) names.set(worker.worker_id, `w${worker.index}${worker.attempt > 1 ? `.${worker.attempt}` : ""}`);
    else names.set(worker.worker_id, worker.worker_id.length > 18 ? `…${worker.worker_id.slice(-17)}` : worker.worker_id);
  }
  return names;
}
