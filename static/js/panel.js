// A site's part beside the page: links marked data-panel open in the dialog instead of leaving the live view.
// Without scripts they are ordinary pages. The log in it goes on by itself while the run lives.

import { showTimes } from "./times.js";

const FOLLOW = 1000; // milliseconds between two looks at a running log

export class Panel {
  #dialog;
  #body;
  #address = "";
  #opened = 0;

  constructor(dialog) {
    this.#dialog = dialog;
    this.#body = dialog.querySelector("#panel-body");
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-panel]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      this.open(link.href);
    });
    dialog.addEventListener("submit", (event) => {
      if (!event.target.matches("form[data-panel]")) return;
      event.preventDefault();
      this.open(`${event.target.action}?${new URLSearchParams(new FormData(event.target))}`);
    });
    dialog.addEventListener("change", (event) => {
      const form = event.target.closest("form[data-panel]");
      if (form && event.target.matches("select")) form.requestSubmit();
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  async open(address) {
    const url = new URL(address, location.href);
    url.searchParams.set("part", "panel");
    this.#address = url.href;
    const turn = ++this.#opened;
    if (!this.#dialog.open) {
      this.#body.replaceChildren(waiting());
      this.#dialog.showModal();
    }
    const html = await fetched(url);
    if (turn !== this.#opened) return;
    this.#fill(html);
  }

  /** Something about a site changed: show it anew when its panel is open. */
  async renew(slugs) {
    if (!this.#dialog.open || !slugs.some((slug) => new URL(this.#address).pathname.endsWith(`/sites/${slug}/`))) return;
    if (this.#body.contains(document.activeElement) && document.activeElement.matches("select")) return;
    const turn = ++this.#opened;
    const html = await fetched(new URL(this.#address));
    if (turn === this.#opened && this.#dialog.open) this.#fill(html);
  }

  #fill(html) {
    const top = this.#body.querySelector("#log")?.scrollTop;
    this.#body.innerHTML = html;
    this.#body.prepend(closer(this.#dialog));
    showTimes(this.#body);
    const log = this.#body.querySelector("#log");
    if (log) followLog(log, this.#body.querySelector("#log-follow"), top);
  }
}

async function fetched(url) {
  try {
    const response = await fetch(url);
    if (response.ok && !response.redirected) return await response.text();
  } catch { /* offline: said below */ }
  return '<h2 id="panel-title">Not available</h2><p>The portal does not answer at the moment, or you have been signed out. Close this and try again.</p>';
}

function waiting() {
  const box = document.createElement("p");
  box.className = "muted";
  box.id = "panel-title";
  box.textContent = "Loading…";
  return box;
}

function closer(dialog) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button button--quiet button--small panel__close";
  button.textContent = "Close";
  button.addEventListener("click", () => dialog.close());
  return button;
}

/** Append new lines to a log while its run lives and the box is ticked. */
export function followLog(log, box, top) {
  const toEnd = () => { if (!box || box.checked) log.scrollTop = log.scrollHeight; };
  if (top === undefined || !box || box.checked) toEnd();
  else log.scrollTop = top;
  if (!("live" in log.dataset)) return;
  const timer = setInterval(async () => {
    if (!log.isConnected || !log.checkVisibility()) return clearInterval(timer);
    if (document.hidden) return;
    const answer = await lines(log);
    if (!answer) return;
    log.dataset.after = answer.next;
    log.append(...answer.lines.map(lineOf));
    if (answer.lines.length) {
      log.parentElement.querySelector("#log-empty")?.setAttribute("hidden", "");
      toEnd();
    }
    if (answer.is_over) clearInterval(timer);
  }, FOLLOW);
}

async function lines(log) {
  try {
    const response = await fetch(`${log.dataset.url}&after=${log.dataset.after}`);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // the next look finds it
  }
}

function lineOf({ at, level, text, detail }) {
  const item = document.createElement("li");
  item.className = `log__line${level ? ` log__line--${level}` : ""}`;
  if (at) {
    const time = document.createElement("time");
    time.dateTime = at;
    time.dataset.clock = "";
    item.append(time);
  }
  const words = document.createElement("span");
  words.textContent = text;
  item.append(words);
  if (detail) {
    const trace = document.createElement("pre");
    trace.textContent = detail;
    item.append(trace);
  }
  showTimes(item);
  return item;
}
