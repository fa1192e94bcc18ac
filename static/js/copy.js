// Buttons with data-copy put their text on the clipboard and briefly say so.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const copied = await write(button.dataset.copy, button);
  const note = document.createElement("span");
  note.className = "copied";
  note.setAttribute("role", "status");
  note.textContent = copied ? "Copied" : "Select the text and press Ctrl+C";
  button.after(note);
  setTimeout(() => note.remove(), copied ? 1600 : 6000);
});

async function write(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeOverHttp(text, button);
  }
}

function writeOverHttp(text, button) {
  // Without HTTPS browsers have no navigator.clipboard, but they still copy what is selected.
  const field = document.createElement("textarea");
  field.value = text;
  button.after(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  button.focus();
  return copied;
}
