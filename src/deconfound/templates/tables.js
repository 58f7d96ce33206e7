// Tables of the class "sortable" sort by their heads, are searched, and save as CSV.

const SHOWN_ROWS = 200;
const SEARCHED_FROM = 8;

function sortKey(cell) {
  const text = (cell.dataset.value ?? cell.firstChild?.textContent ?? "").trim();
  const number = Number.parseFloat(text.replaceAll(",", "").replace(/^[★≈]\s*/u, ""));
  return { text: cell.textContent.trim(), number: /^[★≈\s]*[+-]?[\d.]/u.test(text) ? number : NaN };
}

function compare(a, b) {
  if (Number.isNaN(a.number) !== Number.isNaN(b.number)) return Number.isNaN(a.number) ? 1 : -1;
  if (!Number.isNaN(a.number) && a.number !== b.number) return a.number - b.number;
  return a.text.localeCompare(b.text, undefined, { numeric: true });
}

// Rows that stand in the page.
function rowsOf(table) {
  return Array.from(table.tBodies[0].rows, row => ({
    text: row.textContent.toLowerCase(),
    keys: Array.from(row.cells, sortKey),
    values: Array.from(row.cells, cell => cell.textContent.replace(/\s+/g, " ").trim()),
    make: () => row,
  }));
}

// Rows that are made when they are shown.
function rowsFrom(data) {
  return data.rows.map(values => ({
    text: values.join(" ").toLowerCase(),
    keys: values.map(value => ({ text: String(value ?? ""), number: typeof value === "number" ? value : NaN })),
    values,
    make: () => element("tr", {}, ...values.map(value => (typeof value === "number" || value === null
      ? element("td", { class: "number" }, value === null ? "–" : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6))))
      : element("td", {}, value)))),
  }));
}

function equip(table) {
  const heads = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
  const names = heads.map(head => head.textContent.trim());
  const source = table.dataset.rows;
  const rows = source ? rowsFrom(page.tables[source]) : rowsOf(table);
  const counts = element("span", { class: "count", role: "status" });
  let wanted = "";
  let order = null;
  let most = SHOWN_ROWS;
  const more = element("button", { type: "button", onclick: () => { most *= 5; show(); } }, "show more");

  function show() {
    let found = rows.filter(row => wanted.split(/\s+/).every(word => row.text.includes(word)));
    if (order !== null) {
      const { column, sign } = order;
      found = found.toSorted((a, b) => {
        const unknown = Number.isNaN(a.keys[column].number) !== Number.isNaN(b.keys[column].number);
        return (unknown ? 1 : sign) * compare(a.keys[column], b.keys[column]);
      });
    }
    table.tBodies[0].replaceChildren(...found.slice(0, most).map(row => row.make()));
    const shown = Math.min(found.length, most);
    const all = rows.length.toLocaleString("en");
    counts.textContent = wanted || shown < rows.length ? `${shown.toLocaleString("en")} of ${all} rows` : "";
    more.hidden = shown === found.length;
  }

  function sortBy(column) {
    const sign = order?.column === column ? -order.sign : heads[column].classList.contains("number") ? -1 : 1;
    order = { column, sign };
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    show();
  }

  heads.forEach((head, column) => {
    const button = element("button", { type: "button", class: "sort", onclick: () => sortBy(column) });
    button.append(...head.childNodes);
    head.append(button);
  });
  const bar = element("div", { class: "tools" });
  if (rows.length >= SEARCHED_FROM) {
    bar.append(element("input", {
      type: "search", placeholder: "search rows", "aria-label": "search rows",
      oninput: event => { wanted = event.target.value.trim().toLowerCase(); most = SHOWN_ROWS; show(); },
    }));
  }
  bar.append(counts, more, element("button", {
    type: "button",
    onclick: () => {
      const name = table.dataset.name ?? table.caption?.textContent ?? "table";
      save(fileName(name, "csv"), csvOf([source ? page.tables[source].columns : names, ...rows.map(row => row.values)]), "text/csv");
    },
  }, "CSV"));
  table.closest(".scroll").before(bar);
  if (source || rows.length > most) show();
  else more.hidden = true;
}

// Tables in closed details are made when those open, for they may be long.
function equipIn(root) {
  for (const table of root.querySelectorAll("table.sortable:not([data-equipped])")) {
    if (table.closest("details:not([open])")) continue;
    table.dataset.equipped = "yes";
    equip(table);
  }
}
