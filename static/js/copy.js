// Buttons with data-copy put their text on the clipboard and say so for a moment.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const copied = await write(button.dataset.copy, button);
  const note = document.createElement("span");
  note.className = "copied";
  note.setAttribute("role", "status");
  note.textContent = copied ? "Copied" : "Press Ctrl+C";
  button.after(note);
  setTimeout(() => note.remove(), 1600);
});

async function write(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP browsers keep the clipboard shut: select the text instead.
    const code = button.parentElement.querySelector("code");
    if (code) getSelection().selectAllChildren(code);
    return false;
  }
}
