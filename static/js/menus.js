// Close an open menu or question with Escape or a click elsewhere. Without this script their own button closes them.
const OPEN = "details.menu[open], details.confirm[open]";

document.addEventListener("click", (event) => {
  for (const details of document.querySelectorAll(OPEN)) {
    if (!details.contains(event.target)) details.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const details of document.querySelectorAll(OPEN)) {
    details.open = false;
    if (details.contains(document.activeElement)) details.querySelector("summary").focus();
  }
});
