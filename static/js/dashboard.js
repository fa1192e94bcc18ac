// The dashboard renews itself while somebody looks at it.

const EVERY = 5000;

setInterval(async () => {
  const board = document.querySelector("#board");
  if (document.hidden || board.contains(document.activeElement)) return;
  try {
    const response = await fetch(board.dataset.url);
    if (!response.ok || response.redirected) return;
    const template = document.createElement("template");
    template.innerHTML = (await response.text()).trim();
    const fresh = template.content.firstElementChild;
    if (fresh && !fresh.isEqualNode(board)) board.replaceWith(fresh);
  } catch { /* offline: the next look finds it */ }
}, EVERY);
