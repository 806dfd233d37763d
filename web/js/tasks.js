// The list of tasks.

import { getJson, withQuery } from "./api.js";
import { h, setText } from "./dom.js";
import { ago, bytes, count, dateTime, duration, state } from "./format.js";
import { connection } from "./main.js";
import { Poll } from "./poll.js";

const PAGE = 100;
// A task nobody has heard of for so long is not called running any more.
const QUIET_MS = 5 * 60_000;

/** State of a task for people: as told; if nothing was told, by whether something still happens. */
export function taskState(task, now = Date.now()) {
  if (task.state) return task.state;
  return now - Date.parse(task.last_seen_at) < QUIET_MS ? "running" : "idle";
}

/** Badge of a state: a sign and a word. */
export function badge(name) {
  const [sign, word, kind] = state(name);
  return h("span", { class: `badge ${kind}`, title: name === "idle" ? "nobody told of an end; nothing has happened for a while" : null }, h("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}

export class TasksView {
  #tasks = new Map();
  #rows = new Map();
  #next = null;
  #body;
  #empty;
  #more;
  #find;
  #total;
  #poll;
  #closed = new AbortController();

  constructor(main) {
    this.#find = h("input", { type: "search", placeholder: "Find a task", "aria-label": "Find a task", autocomplete: "off", spellcheck: "false", oninput: () => this.#draw() });
    this.#total = h("span", { class: "muted", role: "status" });
    this.#body = h("tbody");
    this.#empty = h("div", { class: "empty", hidden: true });
    this.#more = h("button", { type: "button", hidden: true, onclick: () => this.#loadMore() }, "Show older tasks");
    main.append(
      h(
        "section",
        { class: "tasks" },
        h("div", { class: "bar" }, h("h1", null, "Tasks"), this.#total, h("span", { class: "grow" }), this.#find),
        h(
          "table",
          null,
          h("thead", null, h("tr", null, ...["State", "Task", "Workers", "Lines", "Size", "Started", "Last activity"].map((name, i) => h("th", { scope: "col", class: i >= 2 && i <= 4 ? "num" : null }, name)))),
          this.#body,
        ),
        this.#empty,
        this.#more,
      ),
    );
    this.#poll = new Poll(() => this.#load(), {
      delay: () => 2000,
      failed: (error) => {
        connection(error ? "Connection to the log server lost, trying again …" : "");
        if (error && this.#tasks.size === 0) this.#say(`The tasks cannot be read: ${error.message}`);
      },
    });
  }

  accepts(params) {
    return params.get("task") === null;
  }

  show() {}

  close() {
    this.#closed.abort();
    this.#poll.close();
    connection("");
  }

  key(event, typing) {
    if (event.key === "/" && !typing) {
      this.#find.focus();
      return true;
    }
    if (event.key === "Escape" && typing) {
      this.#find.value = "";
      this.#find.blur();
      this.#draw();
      return true;
    }
    return false;
  }

  #say(text) {
    setText(this.#empty, text);
    this.#empty.hidden = false;
  }

  async #load() {
    const answer = await getJson(withQuery("/api/v1/tasks", { page_size: PAGE }), { signal: this.#closed.signal });
    if (this.#tasks.size === 0) this.#next = answer.next_page_token;
    const fresh = new Map(answer.tasks.map((task) => [task.task_id, task]));
    // What was loaded further down stays, unless this page reaches the end and so is all there is.
    if (answer.next_page_token !== null) for (const [id, task] of this.#tasks) if (!fresh.has(id)) fresh.set(id, task);
    else this.#next = null;
    this.#tasks = fresh;
    this.#draw();
  }

  async #loadMore() {
    this.#more.disabled = true;
    try {
      const answer = await getJson(withQuery("/api/v1/tasks", { page_size: PAGE, page_token: this.#next }), { signal: this.#closed.signal });
      for (const task of answer.tasks) if (!this.#tasks.has(task.task_id)) this.#tasks.set(task.task_id, task);
      this.#next = answer.next_page_token;
      this.#draw();
    } catch (error) {
      if (!this.#closed.signal.aborted) connection(`Older tasks cannot be read: ${error.message}`);
    } finally {
      this.#more.disabled = false;
    }
  }

  #draw() {
    const wanted = this.#find.value.trim().toLowerCase();
    const matches = (task) => wanted === "" || `${task.task_id} ${Object.values(task.context).join(" ")} ${taskState(task)}`.toLowerCase().includes(wanted);
    const shown = [...this.#tasks.values()].filter(matches);
    const now = Date.now();
    let at = this.#body.firstChild;
    const used = new Set();
    for (const task of shown) {
      let row = this.#rows.get(task.task_id);
      if (!row) {
        row = this.#row(task);
        this.#rows.set(task.task_id, row);
      }
      used.add(task.task_id);
      this.#fill(row, task, now);
      if (row.node === at) at = at.nextSibling;
      else this.#body.insertBefore(row.node, at);
    }
    for (const [id, row] of this.#rows) {
      if (!used.has(id)) {
        row.node.remove();
        this.#rows.delete(id);
      }
    }
    this.#more.hidden = this.#next === null;
    setText(this.#total, this.#tasks.size === 0 ? "" : wanted ? `${count(shown.length)} of ${count(this.#tasks.size)}` : `${count(this.#tasks.size)}${this.#next === null ? "" : "+"}`);
    this.#empty.hidden = shown.length > 0;
    if (shown.length === 0) {
      setText(this.#empty, this.#tasks.size > 0 ? `No task loaded here matches “${this.#find.value.trim()}”.` : "No logs yet. A task appears here with its first event or line, for example after: otto submit -- echo hello");
    }
  }

  #row(task) {
    const row = { state: h("td", { class: "state" }), context: h("span", { class: "context" }), drawn: "" };
    const cell = (label, cls) => h("td", { class: cls ?? null, "data-label": label });
    row.workers = cell("", "num");
    row.lines = cell("", "num");
    row.bytes = cell("", "num");
    row.started = cell("started");
    row.seen = cell("");
    row.node = h(
      "tr",
      null,
      row.state,
      h("td", { class: "name" }, h("a", { href: withQuery("/", { task: task.task_id }), "data-link": "" }, task.task_id), row.context),
      row.workers, row.lines, row.bytes, row.started, row.seen,
    );
    return row;
  }

  // The unit is shown where the table has no header (narrow screens).
  #counted(cell, n, unit) {
    setText(cell, count(n));
    cell.dataset.unit = n === 1 ? unit : `${unit}s`;
  }

  #fill(row, task, now) {
    const name = taskState(task, now);
    if (row.drawn !== name) {
      row.drawn = name;
      row.state.replaceChildren(badge(name));
    }
    const { repository, commit_sha: commit, triggered_by: by, reason } = task.context;
    setText(row.context, [repository && commit ? `${repository}@${commit.slice(0, 10)}` : repository || commit?.slice(0, 10), by && `by ${by}`, reason].filter(Boolean).join(" · "));
    this.#counted(row.workers, task.workers, "worker");
    this.#counted(row.lines, task.lines, "line");
    setText(row.bytes, bytes(task.bytes));
    setText(row.started, ago(task.first_seen_at, now));
    row.started.title = dateTime(task.first_seen_at);
    setText(row.seen, task.state ? `took ${duration(Date.parse(task.last_seen_at) - Date.parse(task.first_seen_at))}` : ago(task.last_seen_at, now));
    row.seen.title = dateTime(task.last_seen_at);
  }
}
