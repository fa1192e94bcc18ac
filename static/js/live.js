// The live page of an experiment. The first figure is in the page; the socket brings what came after its cursor:
//   {cursor, state, series, fragments: [{id, into, html}], summary} or {reload: true}.
// Everything is known by its identity (points by series, round and step; HTML by id), so repeats are harmless.

import "./copy.js";
import { Curves } from "./curves.js";
import { Panel } from "./panel.js";
import { SeriesStore } from "./series.js";
import { Tail } from "./socket.js";
import { showTimes } from "./times.js";

const MOST_EVENTS = 300;
const SPEAK_EVERY = 15000; // milliseconds between two sentences for a screen reader

const data = JSON.parse(document.querySelector("#experiment-data").textContent);
const store = new SeriesStore();
store.add(data.series);
const drawn = document.querySelector("[aria-labelledby=curves-title]"); // a cross-site evaluation has no curves
const curves = drawn && new Curves(drawn, data, store);
const panel = new Panel(document.querySelector("#panel"));
let cursor = data.cursor;
let state = data.state;

curves?.draw();
showBars();
showTimes();
setInterval(showTimes, 1000);

new Tail(
  () => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${data.socket}?after=${cursor}&round=${newestRound()}`,
  { message: receive, status: showConnection },
);

function receive(message) {
  if (message.reload) return location.reload();
  cursor = message.cursor;
  if (message.series.length && store.add(message.series)) curves?.draw();
  const touched = new Set();
  for (const fragment of message.fragments) place(fragment, touched);
  showBars();
  if (message.state !== state) changeState(message.state);
  offerRest();
  if (touched.size) panel.renew([...touched]);
  if (message.summary) speak(message.summary);
}

/** Put a piece of HTML where it belongs: over the element with its id, else first into its container. */
function place({ id, into, html }, touched) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  const fresh = template.content.firstElementChild;
  const old = document.getElementById(id);
  showTimes(template.content);
  if (!old) {
    const container = document.getElementById(into);
    if (!container) return;
    insert(container, fresh);
  } else if (!old.isEqualNode(fresh)) {
    const href = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceWith(fresh);
    if (href) fresh.querySelector(`a[href="${CSS.escape(href)}"]`)?.focus();
  } else return;
  if (into === "rounds") for (const link of fresh.querySelectorAll("a[data-panel]")) touched.add(link.pathname.split("/").at(-2));
}

/** Newest first: by the number in the id, so that the order of arrival does not matter. */
function insert(container, fresh) {
  const number = (element) => Number(element.id.split("-").at(-1));
  const next = [...container.children].find((child) => number(child) < number(fresh));
  container.insertBefore(fresh, next ?? null);
  if (container.id === "feed") {
    fresh.hidden = !passes(fresh);
    while (container.children.length > MOST_EVENTS) {
      container.lastElementChild.remove();
      document.querySelector('[data-more="feed"]').hidden = false;
    }
  }
  container.closest("section")?.querySelector(".empty")?.remove();
}

function changeState(next) {
  state = next;
  showConnection("live"); // the news just came over the line
  for (const element of document.querySelectorAll("[data-states]")) {
    element.hidden = !element.dataset.states.split(" ").includes(next);
  }
}

/** Once a run has ended, what is left beside it can be cancelled from here. */
function offerRest() {
  const button = document.querySelector("#cancel-rest");
  const left = Number(document.querySelector("#relatives")?.dataset.left ?? 0);
  if (button) button.hidden = !left || ["running", "paused"].includes(state);
}

function newestRound() {
  return document.querySelector("#rounds tr")?.dataset.round ?? 0;
}

/** How far each site has come with its training, from the newest point of its curve. */
function showBars() {
  for (const bar of document.querySelectorAll(".run__bar")) {
    bar.value = store.progress(bar.dataset.site, Number(bar.dataset.round));
  }
}

// --- the sentence for screen readers, not more often than one can listen --------------------------

let spoken = Date.now();
let waiting = 0;

function speak(text) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    spoken = Date.now();
    const line = document.querySelector("#summary");
    if (line.textContent !== text) line.textContent = text;
  }, Math.max(0, spoken + SPEAK_EVERY - Date.now()));
}

function showConnection(status, code) {
  const sign = document.querySelector("#connection");
  const words = {
    live: "Live",
    reconnecting: "Reconnecting…",
    refused: code === 4401 ? "Signed out: reload to sign in" : "You may no longer see this experiment",
  };
  sign.hidden = status === "live" && !["running", "paused", "cancelling"].includes(state);
  sign.dataset.status = status;
  if (sign.textContent !== words[status]) sign.textContent = words[status];
}

// --- feed and older lines -------------------------------------------------------------------------

const chosenSite = document.querySelector("#feed-site");
const passes = (item) => !chosenSite.value || item.dataset.site === chosenSite.value;

chosenSite.addEventListener("change", () => {
  for (const item of document.querySelectorAll("#feed > li")) item.hidden = !passes(item);
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-more]");
  if (!button) return;
  const container = document.getElementById(button.dataset.more);
  const last = container.lastElementChild;
  const query = new URLSearchParams({ before: last ? last.id.split("-").at(-1) : "0" });
  button.disabled = true;
  try {
    const response = await fetch(`${button.dataset.url}?${query}`);
    const template = document.createElement("template");
    template.innerHTML = response.ok ? (await response.text()).trim() : "";
    showTimes(template.content);
    const count = template.content.children.length;
    for (const item of template.content.children) if (container.id === "feed") item.hidden = !passes(item);
    container.append(template.content);
    const oldest = Number(container.lastElementChild?.id.split("-").at(-1));
    button.hidden = response.ok && (count < 20 || (container.id === "rounds" && oldest === 1));
  } finally {
    button.disabled = false;
  }
});
