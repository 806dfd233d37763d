// Numbers, times and states for people.

const number = new Intl.NumberFormat("en");
export const count = (n) => number.format(n);

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  for (const unit of ["KB", "MB", "GB", "TB"]) {
    n /= 1000;
    if (n < 999.5 || unit === "TB") return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${unit}`;
  }
}

/** "3 min ago". */
export function ago(iso, now = Date.now()) {
  if (!iso) return "";
  const s = Math.max(0, Math.round((now - Date.parse(iso)) / 1000));
  if (s < 5) return "just now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${plural(Math.floor(s / 86400), "day")} ago`;
}

/** "2 min 03 s". */
export function duration(ms) {
  if (!(ms >= 0)) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = Math.round(ms / 1000);
  if (s < 60) return `${(ms / 1000).toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** Local time of day with milliseconds: "12:28:05.123". */
export function timeOfDay(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? "" : `${clock.format(at)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

export function dateTime(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? "" : full.format(at);
}

// A sign and a word each, so that colour is never the only difference.
const STATES = {
  live: ["●", "running", "run"],
  running: ["●", "running", "run"],
  queued: ["◌", "queued", "wait"],
  waiting: ["◌", "waiting", "wait"],
  created: ["◌", "starting", "wait"],
  retrying: ["↻", "retrying", "wait"],
  succeeded: ["✓", "succeeded", "good"],
  failed: ["✕", "failed", "bad"],
  cancelled: ["⊘", "cancelled", "off"],
  stopped: ["⊘", "stopped", "off"],
  ended: ["■", "ended", "off"],
  lost: ["✕", "lost", "bad"],
  idle: ["○", "quiet", "off"],
  unknown: ["?", "unknown", "off"],
};

/** [sign, word, class] of a task's or worker's state. */
export function state(name) {
  return STATES[name] ?? ["?", name || "unknown", "off"];
}

const REASONS = {
  server_lost: "the log server had lost them",
  spool_full: "the worker's buffer was full",
  agent_lost: "the worker was killed before it could send them",
  refused: "the log server refused them",
  damaged: "stored bytes were found damaged",
  expired: "removed by retention",
  unspecified: "no reason given",
};

/** "lines 12 to 40 are missing (29 lines): removed by retention". */
export function gapText(gap) {
  const why = REASONS[gap.reason] ?? gap.reason;
  const more = gap.message && gap.message !== why ? ` – ${gap.message}` : "";
  const { first_sequence: first, last_sequence: last } = gap;
  if (!last) return `lines from ${count(first)} on are missing, nobody knows how many: ${why}${more}`;
  if (first === last) return `line ${count(first)} is missing: ${why}${more}`;
  return `lines ${count(first)} to ${count(last)} are missing (${plural(last - first + 1, "line")}): ${why}${more}`;
}

/** " (out of memory)": what a failure or a wait is about; nothing where the state says as much. */
export function about(failureClass) {
  return failureClass && !["exited", "stopped"].includes(failureClass) ? ` (${failureClass.replaceAll("_", " ")})` : "";
}

/** A worker event as one sentence. */
export function eventText(event) {
  const names = {
    queued: "Queued", created: "Created", started: "Started", succeeded: "Succeeded", failed: "Failed", stopped: "Stopped",
    waiting: "Cannot start yet", retrying: "Will be tried again", task_ended: "Task ended", event_lost: "An event was lost",
    troubled: event.failure_class ? "May be lost" : "Well again",
  };
  let text = names[event.type] ?? event.type;
  if (event.type === "task_ended" && event.task_state) text = `Task ${event.task_state}`;
  text += about(event.failure_class);
  if (event.message) text += `: ${event.message}`;
  else if (event.signal) text += `: signal ${event.signal}`;
  else if (event.exit_code) text += `: exit code ${event.exit_code}`;
  if (event.retry_at) text += `, next attempt ${dateTime(event.retry_at)}`;
  if (event.node_name && event.type === "started") text += ` on ${event.node_name}`;
  return text;
}
