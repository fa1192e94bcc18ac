// The composer works without this. It spares a mistake: leaving with unsaved entries, ticking datasets that do not go
// together, filling in a setting that the chosen optimizer or schedule does not use. And it counts gradient steps.

import { chooseSites } from "./choose.js";

const form = document.querySelector("[data-composer]");

if (form) {
  warnBeforeLosing(form);
  markDatasets(document.querySelectorAll("input[data-task]"));
  for (const bar of document.querySelectorAll("[data-choose-sites]")) chooseSites(bar);
  for (const control of form.querySelectorAll("[data-needs]")) onlyWithEffect(control);
  for (const box of form.querySelectorAll("input[data-with]")) tickTogether(box, form.querySelector(`[value="${box.dataset.with}"]`));
  if (form.querySelector("[data-together]")) countSteps(form);
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

/** A baseline that is made of another one's models comes and goes with it. */
function tickTogether(box, other) {
  box.addEventListener("input", () => box.checked && !other.disabled && (other.checked = true));
  other.addEventListener("input", () => !other.checked && (box.checked = false));
}

/** Keep the table of gradient steps at what is ticked. A step that is not told has no number, and so has no sum. */
function countSteps(form) {
  const together = form.querySelector("[data-together]");
  const update = () => {
    const seeds = Math.max(1, Math.floor(Number(form.elements.repeats.value)) || 1);
    let sum = 0;
    for (const row of form.querySelectorAll("[data-baseline]")) {
      const box = form.querySelector(`[name="baselines"][value="${row.dataset.baseline}"]`);
      const isTrained = !box || box.checked;
      row.classList.toggle("is-left-out", !isTrained);
      if (isTrained) sum += row.dataset.steps === "" ? NaN : Number(row.dataset.steps);
    }
    together.textContent = Number.isNaN(sum) ? "not told" : seeds * sum;
    form.querySelector("[data-seeds]").textContent = seeds === 1 ? "1 seed" : `${seeds} seeds`;
  };
  form.addEventListener("input", update);
  update();
}
