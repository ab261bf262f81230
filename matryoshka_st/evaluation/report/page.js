"use strict";

// Tables: a button in every head; numbers from high to low first, texts from a to z, missing values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, heads, i));
    head.replaceChildren(button);
  });
}

function sort(table, heads, column) {
  const head = heads[column];
  const number = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  const order = before ? (before === "ascending" ? "descending" : "ascending") : number ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    const [left, right] = [a.cells[column], b.cells[column]];
    if (!number) return sign * left.textContent.localeCompare(right.textContent, undefined, { numeric: true });
    if (!left.dataset.value || !right.dataset.value) return !left.dataset.value - !right.dataset.value;
    return sign * (left.dataset.value - right.dataset.value);
  };
  const body = table.tBodies[0];
  body.replaceChildren(...[...body.rows].sort(compare));
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
}

// Tooltips: the same texts that browsers show on their own after a while, but at once and on touch.
const tip = document.createElement("div");
tip.id = "tip";
tip.role = "tooltip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg .point > title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
for (const cell of document.querySelectorAll("th[title], td[title]")) {
  cell.dataset.tip = cell.title;
  cell.removeAttribute("title");
}
for (const kind of ["pointerover", "pointermove"]) document.addEventListener(kind, tell);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") tip.hidden = true;
});
document.addEventListener("scroll", () => { tip.hidden = true; }, true);

// All points under the pointer are told, not just the topmost one.
function tell({ clientX, clientY }) {
  const owners = document.elementsFromPoint(clientX, clientY).map((element) => element.closest("[data-tip]"));
  const texts = new Set(owners.filter(Boolean).map((owner) => owner.dataset.tip));
  tip.hidden = !texts.size;
  if (!texts.size) return;
  tip.textContent = [...texts].join("\n");
  const spot = owners.find(Boolean).getBoundingClientRect();
  const left = spot.left + spot.width / 2 - tip.offsetWidth / 2;
  const above = spot.top - tip.offsetHeight - 4;
  tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${above < 4 ? spot.bottom + 4 : above}px`;
}
