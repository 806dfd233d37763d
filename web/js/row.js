// One row of a log as DOM.

import { afterReturns, dress, parse } from "./ansi.js";
import { h } from "./dom.js";
import { count, dateTime, eventText, gapText, timeOfDay } from "./format.js";

const SHOWN = 4_000;
const SHOWN_ON_DEMAND = 400_000;
const LEVELS = { warn: "WARN", error: "ERROR", fatal: "FATAL" };

/** A stable hue of a worker's name, for its prefix. */
export function hue(name) {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i += 1) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  return (hash >>> 0) % 12;
}

/**
 * `view`: { label(row) → worker's short name or "", href(row) → permalink, mark: RegExp of matches or null, target: key of the
 * row a permalink points at }.
 */
export function renderRow(row, view) {
  if (row.kind === "line") return lineRow(row, view);
  if (row.kind === "gap") return noteRow("gap", "⚠", `${view.label(row.gap) ? `${view.label(row.gap)}: ` : ""}${gapText(row.gap)}`);
  if (row.kind === "event") {
    const name = row.event.worker_id ? `${view.label(row.event) || row.event.worker_id}: ` : "";
    return noteRow("event", "•", `${name}${eventText(row.event)}`, row.event.time);
  }
  if (row.kind === "note") return noteRow("note", "■", row.text);
  return h("div", { class: "row blank" }, h("span", { class: "ln" }, row.sequence ? String(row.sequence) : ""), h("span", { class: "msg" }, "…"));
}

function noteRow(kind, sign, text, time) {
  return h(
    "div",
    { class: `row ${kind}` },
    h("span", { class: "ln", "aria-hidden": "true" }, sign),
    time ? h("time", { class: "ts", datetime: time, title: dateTime(time) }, timeOfDay(time)) : h("span", { class: "ts" }),
    h("span", { class: "msg" }, text),
  );
}

function lineRow(row, view) {
  const classes = ["row"];
  if (row.source === "stderr") classes.push("stderr");
  if (LEVELS[row.level]) classes.push(`l-${row.level}`);
  if (view.target === row.key) classes.push("target");
  const label = view.label(row);
  const message = h("bdi", { class: "msg" });
  if (LEVELS[row.level] && !row.message.slice(0, 80).toLowerCase().includes(row.level)) {
    message.append(h("span", { class: "lv" }, LEVELS[row.level]), " ");
  }
  fill(message, row, view.mark, SHOWN);
  return h(
    "div",
    { class: classes.join(" ") },
    h("a", { class: "ln", href: view.href(row), "data-seq": String(row.sequence), tabindex: "-1", "aria-label": `Line ${row.sequence}` }, String(row.sequence)),
    h("time", { class: "ts", datetime: row.time, title: dateTime(row.time) }, timeOfDay(row.time)),
    label ? h("span", { class: `wk h${hue(row.worker_id)}`, title: row.worker_id }, label) : null,
    h("span", { class: "src", title: row.source === "stderr" ? "printed to stderr" : null }, row.source === "stderr" ? "err" : ""),
    message,
  );
}

function fill(message, row, mark, shown) {
  const text = afterReturns(row.message);
  const cut = text.length > shown;
  const pieces = parse(cut ? text.slice(0, shown) : text);
  const plain = pieces.map((piece) => piece.text).join("");
  const marks = mark && plain.length <= SHOWN ? matches(plain, mark) : [];
  let at = 0;
  let next = 0;
  for (const { text: part, style } of pieces) {
    const end = at + part.length;
    let from = at;
    const span = style ? h("span") : null;
    if (span) dress(span, style);
    const target = span ?? message;
    while (next < marks.length && marks[next][0] < end) {
      const [start, stop] = marks[next];
      const a = Math.max(start, from);
      const b = Math.min(stop, end);
      if (a > from) target.append(plain.slice(from, a));
      target.append(h("mark", null, plain.slice(a, b)));
      from = b;
      if (stop > end) break;
      next += 1;
    }
    if (from < end) target.append(plain.slice(from, end));
    if (span) message.append(span);
    at = end;
  }
  if (cut) {
    const left = text.length - shown;
    message.append(
      h("button", {
        class: "more",
        type: "button",
        onclick: () => {
          message.replaceChildren();
          fill(message, row, mark, SHOWN_ON_DEMAND);
          message.dispatchEvent(new CustomEvent("rowresize", { bubbles: true }));
        },
      }, shown === SHOWN ? `… ${count(left)} more characters` : `… ${count(left)} more: download the log to see them`),
    );
  }
  if (row.unterminated) message.append(h("span", { class: "open", title: "The line has no newline: it goes on in the next one, or is the last" }, "⏎̸"));
}

function matches(text, mark) {
  const found = [];
  mark.lastIndex = 0;
  for (let match = mark.exec(text); match && found.length < 200; match = mark.exec(text)) {
    if (match[0] === "") {
      mark.lastIndex += 1;
      if (mark.lastIndex > text.length) break;
    } else found.push([match.index, match.index + match[0].length]);
  }
  return found;
}
