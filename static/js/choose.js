// Finding and choosing sites where there are many ([data-choose-sites]): a search over what the cards say, how many are
// chosen, and a button for each of them that takes it out again. Without this script the chosen ones come first.

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

export function chooseSites(bar) {
  const search = bar.querySelector("input");
  const cards = [...document.querySelectorAll("[data-site-card]")].map((card) => ({
    card,
    name: card.querySelector("h3").dataset.name,
    head: plain(card.querySelector(".site-card__head").textContent),
    choices: [...card.querySelectorAll(".choice")].map((choice) => ({
      choice,
      box: choice.querySelector("input"),
      text: plain(choice.textContent),
    })),
  }));
  const count = bar.querySelector("[data-count]");
  const list = bar.querySelector("[data-chosen]");

  function find() {
    const words = plain(search.value).split(/\s+/);
    const has = (text) => words.every((word) => text.includes(word));
    for (const { card, head, choices } of cards) {
      for (const { choice, text } of choices) choice.hidden = !has(`${head} ${text}`);
      card.hidden = choices.length ? choices.every(({ choice }) => choice.hidden) : !has(head);
    }
    tell();
  }

  function tell() {
    const chosen = cards.flatMap(({ name, choices }) => choices.filter(({ box }) => box.checked).map(({ box }) => ({ name, box })));
    const shown = cards.filter(({ card }) => !card.hidden).length;
    const found = search.value.trim() ? ` The search finds ${shown || "none"}.` : "";
    count.textContent = `${chosen.length} of ${cards.length} sites chosen.${found}`;
    list.replaceChildren(...chosen.map(takesOut));
  }

  function takesOut({ name, box }, place) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button button--small";
    button.textContent = name;
    button.setAttribute("aria-label", `Take ${name} out`);
    button.addEventListener("click", () => {
      untick(box);
      (list.children[place] ?? list.lastElementChild ?? search).focus();
    });
    return button;
  }

  function untick(box) {
    box.checked = false;
    box.dispatchEvent(new Event("change", { bubbles: true }));
  }

  search.addEventListener("input", find);
  search.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault()); // it would save the draft
  bar.querySelector("[data-none]").addEventListener("click", () => {
    for (const { choices } of cards) for (const { box } of choices) if (box.checked) untick(box);
  });
  for (const { choices } of cards) for (const { box } of choices) box.addEventListener("change", tell);
  bar.hidden = false;
  find();
}
