// The composer works without this. It spares a mistake: leaving with unsaved entries, ticking datasets that do not go
// together, filling in a setting that the chosen optimizer or schedule does not use.

const form = document.querySelector("[data-composer]");

if (form) {
  warnBeforeLosing(form);
  markDatasets(document.querySelectorAll("input[data-task]"));
  for (const control of form.querySelectorAll("[data-needs]")) onlyWithEffect(control);
}
for (const link of document.querySelectorAll("[data-reveal]")) {
  link.addEventListener("click", () => document.querySelector(link.hash)?.focus());
}

function warnBeforeLosing(form) {
  const asTyped = () => new URLSearchParams([...new FormData(form)].filter(([name]) => name !== "go")).toString();
  const before = document.querySelector(".field--refused") ? "" : asTyped();
  let isLeavingBySaving = false;
  form.addEventListener("submit", () => (isLeavingBySaving = true));
  window.addEventListener("beforeunload", (event) => {
    if (!isLeavingBySaving && asTyped() !== before) event.preventDefault();
  });
}

function markDatasets(boxes) {
  const update = () => {
    const chosen = [...boxes].filter((box) => box.checked);
    for (const box of boxes) {
      const fits = chosen.every((other) => other.dataset.task === box.dataset.task);
      const isFree = chosen.every((other) => other === box || other.dataset.site !== box.dataset.site);
      box.disabled = !box.checked && !(fits && isFree);
    }
  };
  for (const box of boxes) box.addEventListener("change", update);
  update();
}

function onlyWithEffect(control) {
  const choice = form.elements[control.dataset.needs];
  const field = control.closest(".field");
  const update = () => {
    const hasEffect = control.dataset.values.split(" ").includes(choice.value);
    field.hidden = !hasEffect && !field.classList.contains("field--refused");
  };
  choice.addEventListener("change", update);
  update();
}
