// Times for people: the page carries UTC, a person reads the own clock; running times count on.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });

/** Write the times inside an element: [data-clock] as local time, [data-since] as seconds passed. */
export function showTimes(root = document) {
  for (const time of root.querySelectorAll("time[data-clock]:not([title])")) {
    const at = new Date(time.dateTime);
    time.textContent = (isToday(at) ? clock : day).format(at);
    time.title = full.format(at);
  }
  for (const time of root.querySelectorAll("time[data-since]")) {
    const text = span((Date.now() - new Date(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}

function isToday(at) {
  return at.toDateString() === new Date().toDateString();
}

export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}
