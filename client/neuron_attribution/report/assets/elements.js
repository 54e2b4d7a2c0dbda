// The page's building blocks. Text only ever becomes text nodes: nothing in a token is read as HTML.

/** An element; properties that start with "on" are listeners, `style` holds CSS properties. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.entries(value).forEach(([property, text]) => element.style.setProperty(property, text));
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null));
  return element;
}

function tokenChip(token, properties = {}) {
  return make("bdi", { ...properties, class: `token ${properties.class ?? ""}` }, visible(token.text));
}

/** A position with its token. */
function place(position, tokens) {
  return [make("span", { class: "position" }, String(position)), " ", tokens[position] ? tokenChip(tokens[position]) : ""];
}

function section(id, title, ...children) {
  return make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), ...children);
}

function note(...children) {
  return make("p", { class: "note" }, ...children);
}

/** Something that is built when it is first opened. */
function folded(summary, build) {
  const details = make("details", {}, make("summary", {}, summary));
  details.addEventListener("toggle", () => details.childElementCount === 1 && details.append(build()), { once: true });
  return details;
}

/** A box that scrolls by itself, by keyboard too. */
function scrolling(label, child, className = "") {
  return make("div", { class: `scrolling ${className}`, tabindex: "0", role: "region", "aria-label": label }, child);
}

/**
 * A table and the button that saves it as CSV.
 * Columns: {title, cell(row), csv(row), numeric}; one without `cell` is only in the CSV, one without `csv` only shown.
 * `isFaint(row)` says which rows say less than others; `more(row)` is what a row unfolds beneath itself, under the button its first cell becomes; `opened(row)` is told.
 */
function dataTable({ file, caption, columns, rows, more, opened, isFaint }) {
  const shown = columns.filter((column) => column.cell);
  const heads = shown.map(({ title, numeric }) => make("th", { scope: "col", class: numeric && "numeric" }, title));
  const body = make("tbody", {}, rows.map((row) => tableRows(row, shown, more, opened, isFaint?.(row) && "faint")));
  const table = make("table", {}, make("caption", {}, make("span", {}, caption)), make("thead", {}, make("tr", {}, heads)), body);
  return make("div", { class: "data" }, scrolling(caption, table), saveButtons(file, columns, rows, caption));
}

function tableRows(row, columns, more, opened, faint) {
  const [first, ...others] = columns;
  const extra = more?.(row);
  const head = make("th", { scope: "row" });
  const line = make("tr", { class: faint }, head, others.map((column) => tableCell(column, row)));
  if (!extra) {
    head.append(...[first.cell(row)].flat());
    return [line];
  }
  const beneath = make("tr", { class: `more ${faint || ""}`, hidden: true }, make("td", { colspan: String(columns.length) }));
  head.append(unfoldButton(first.cell(row), beneath, extra, () => opened?.(row)));
  return [line, beneath];
}

function unfoldButton(content, beneath, build, opened) {
  const button = make("button", { type: "button", class: "unfold", "aria-expanded": "false" }, content);
  button.addEventListener("click", () => {
    const cell = beneath.firstChild;
    if (!cell.hasChildNodes()) cell.append(build());
    beneath.hidden = !beneath.hidden;
    button.setAttribute("aria-expanded", String(!beneath.hidden));
    if (!beneath.hidden) opened();
  });
  return button;
}

function tableCell({ cell, numeric }, row) {
  return make("td", { class: numeric && "numeric" }, cell(row));
}

function saveButtons(file, columns, rows, caption) {
  const saved = columns.filter((column) => column.csv);
  const build = () => csv([saved.map(({ title }) => title), ...rows.map((row) => saved.map((column) => column.csv(row)))]);
  return saveButton("CSV", `Save as CSV: ${caption}`, `${file}.csv`, "text/csv;charset=utf-8", build);
}

function saveButton(text, label, name, type, build) {
  return make("button", { type: "button", class: "save", "aria-label": label, onclick: () => save(name, type, build()) }, text);
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** A number with a bar behind it, as wide as its part of the largest. */
function barredNumber(value, largest) {
  const part = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0;
  const style = { "--part": `${(100 * part).toFixed(1)}%` };
  return make("span", { class: `barred ${value < 0 ? "negative" : "positive"}`, style }, number(value));
}

/** Says something to screen readers. */
function announcer() {
  return make("p", { class: "spoken", "aria-live": "polite" });
}
