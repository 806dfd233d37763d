// Which view is shown for which address: "/" the tasks, "/?task=T" one task, "/?task=T&worker=W#L12" one line of it.

import { h, setText } from "./dom.js";
import { TaskView } from "./task.js";
import { TasksView } from "./tasks.js";

const main = document.querySelector("#main");
const crumbs = document.querySelector(".crumbs");
const help = document.querySelector("#help-dialog");
let view = null;

/** Goes to another address of this page. `replace`: without a step in the history. */
export function navigate(url, { replace = false } = {}) {
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  route();
}

function route() {
  const params = new URLSearchParams(location.search);
  const task = params.get("task");
  if (view?.accepts?.(params)) {
    view.show(params, location.hash);
  } else {
    view?.close();
    main.replaceChildren();
    view = task === null ? new TasksView(main) : new TaskView(main, task, { navigate });
    view.show(params, location.hash);
    main.focus({ preventScroll: true });
  }
  crumbs.replaceChildren(...(task === null ? [] : [h("a", { href: "/", "data-link": "" }, "Tasks"), h("span", { "aria-hidden": "true" }, "/"), h("span", { class: "crumb", "aria-current": "page", title: task }, task)]));
  document.title = task === null ? "Ottoscaler logs" : `${task} – Ottoscaler logs`;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-link]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  navigate(link.getAttribute("href"));
});
window.addEventListener("popstate", route);
window.addEventListener("hashchange", () => view?.show(new URLSearchParams(location.search), location.hash));

document.querySelector("#help-button").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key === "?" && !typing) {
    help.showModal();
    event.preventDefault();
  } else if (view?.key?.(event, Boolean(typing))) event.preventDefault();
});

/** Says in the header how the connection is; empty: fine. */
export function connection(text) {
  const conn = document.querySelector(".conn");
  setText(conn, text);
  conn.classList.toggle("bad", text !== "");
}

route();
