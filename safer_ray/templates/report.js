"use strict";
// Without this script every card is shown and stays readable; it only filters and shows cards by the page.
document.documentElement.classList.add("js");
const PAGE = 20;

for (const browser of document.querySelectorAll(".browser")) {
  const cards = [...browser.querySelectorAll(".card")];
  const controls = [...browser.querySelectorAll("[data-filter]")];
  const count = browser.querySelector("output");
  const more = browser.querySelector(".more");
  const texts = new Map();
  let limit = PAGE;

  const textOf = (card) => {
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return texts.get(card);
  };
  const has = (element, key, value) => (element.dataset[key] || "").split("|").includes(value);

  const matches = (card, wanted) => {
    if (wanted.text && !textOf(card).includes(wanted.text.toLowerCase())) return false;
    for (const key of ["category", "label", "change", "axis", "round", "step"]) {
      if (wanted[key] && !has(card, key, wanted[key])) return false;
    }
    let any = !wanted.checkpoint && !wanted.outcome;
    for (const answer of card.querySelectorAll(".answer[data-checkpoint], .chip[data-checkpoint]")) {
      const mine = !wanted.checkpoint || has(answer, "checkpoint", wanted.checkpoint);
      answer.hidden = !mine;
      if (mine && (!wanted.outcome || has(answer, "outcome", wanted.outcome))) any = true;
    }
    return any;
  };

  const update = () => {
    const wanted = Object.fromEntries(controls.map((control) => [control.dataset.filter, control.value]));
    let found = 0;
    for (const card of cards) {
      const ok = matches(card, wanted);
      card.hidden = !ok || found >= limit;
      if (ok) found += 1;
    }
    count.textContent = found === cards.length ? `${found} in all` : `${found} of ${cards.length} match`;
    more.style.display = found > limit ? "block" : "none";
    more.textContent = `Show ${Math.min(PAGE, found - limit)} more`;
  };

  for (const control of controls) {
    control.addEventListener("input", () => { limit = PAGE; update(); });
  }
  more.addEventListener("click", () => { limit += PAGE; update(); });
  update();
}
