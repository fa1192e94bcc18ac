// A page that waits for something ([data-waiting]) renews its parts ([data-part]) until nothing in it waits any more.
// A page in which something begins by itself ([data-watched]) goes on looking, now and then, while somebody sees it.
// Without this script a reload does the same.

import { showTimes } from "./times.js";

const EVERY = 1000; // milliseconds between two looks
const LATER = 10000; // when the portal does not answer
const NOW_AND_THEN = 15000; // when nothing is waited for

async function renew() {
  if (document.hidden) return document.addEventListener("visibilitychange", renew, { once: true });
  const answer = await page();
  if (!answer) return setTimeout(renew, LATER);
  for (const fresh of answer.querySelectorAll("[data-part]")) {
    const part = document.querySelector(`[data-part="${fresh.dataset.part}"]`);
    if (part) keepOpen(part, fresh);
    // What somebody is using stays as it is; the live region itself stays, so that its new words are read out.
    if (!part || part.contains(document.activeElement) || sameText(part, fresh)) continue;
    part.replaceChildren(...fresh.childNodes);
  }
  look();
}

async function page() {
  try {
    const response = await fetch(location.href);
    if (!response.ok || response.redirected) return null;
    return new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    return null; // offline: the next look finds it
  }
}

function keepOpen(part, fresh) {
  const now = [...part.querySelectorAll("details")];
  fresh.querySelectorAll("details").forEach((one, index) => now[index] && (one.open = now[index].open));
}

function sameText(part, fresh) {
  const copy = part.cloneNode(true);
  for (const one of [copy, fresh]) {
    for (const time of one.querySelectorAll("time[data-since]")) time.textContent = "";
    for (const token of one.querySelectorAll("[name=csrfmiddlewaretoken]")) token.setAttribute("value", ""); // new each time
  }
  return copy.innerHTML === fresh.innerHTML;
}

function look() {
  showTimes();
  if (document.querySelector("[data-waiting]")) setTimeout(renew, EVERY);
  else if (document.querySelector("[data-watched]")) setTimeout(renew, NOW_AND_THEN);
}

look();
