for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, at) => row.cells[at].dataset.sort ?? row.cells[at].textContent;
  const isNone = (text) => text === "" || text === "–";
  table.tHead.querySelectorAll("th").forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, at), row]);
      const numeric = rows.every(([text]) => isNone(text) || !Number.isNaN(Number(text)));
      rows.sort(([a], [b]) => {
        if (isNone(a) || isNone(b)) return isNone(a) - isNone(b);
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return up ? order : -order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
function light() {
  for (const row of document.querySelectorAll("tr.lit")) row.classList.remove("lit");
  const arm = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.dataset.arm;
  if (arm !== location.hash.slice(1)) return;
  for (const row of document.querySelectorAll("tr[data-arm]")) row.classList.toggle("lit", row.dataset.arm === arm);
}
addEventListener("hashchange", light);
light();
