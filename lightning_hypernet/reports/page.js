"use strict";
const root = document.documentElement;
const themeSwitch = document.getElementById("theme");
function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
function nameSwitch() {
  themeSwitch.textContent = isDark() ? "Light" : "Dark";
}
themeSwitch.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameSwitch();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameSwitch);
nameSwitch();

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}
for (const head of document.querySelectorAll("thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const order = (one, other) => {
      const [a, b] = [valueOf(one, head.cellIndex), valueOf(other, head.cellIndex)];
      const by = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return up ? by : -by;
    };
    body.append(...[...body.rows].sort(order));
  });
}
