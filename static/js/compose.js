// The composer works without this. It spares a mistake: leaving with unsaved entries, ticking datasets that do not go
// together, filling in a setting that the chosen optimizer or schedule does not use.

const form = document.querySelector("[data-composer]");

if (form) {
  warnBeforeLosing(form);
  markDatasets(document.querySelectorAll("input[data-task]"));
  const fields = form.elements;
  onlyFor(fields.optimizer_name, { optimizer_momentum: ["sgd"], optimizer_amsgrad: ["adam", "adamw"] });
  onlyFor(fields.schedule_name, {
    schedule_final_factor: ["cosine"],
    schedule_power: ["polynomial"],
    schedule_step_rounds: ["step"],
    schedule_step_factor: ["step"],
  });
  onlyFor(fields.stragglers, { grace_minutes: ["drop"] });
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

function onlyFor(choice, dependents) {
  if (!choice) return;
  const update = () => {
    for (const [name, values] of Object.entries(dependents)) {
      const field = form.elements[name]?.closest(".field");
      if (field) field.hidden = !values.includes(choice.value) && !field.classList.contains("field--refused");
    }
  };
  choice.addEventListener("change", update);
  update();
}
