// A heat map of rows (neurons, heads, layers) by explained tokens: a table, so that it can be read and walked by keyboard.

/**
 * `lines`: {shown, name, more, coefficients}, with what is `shown` as a quantity.
 * A row shades the answer, a token shows its own explanation.
 */
function tokenMap(title, lines, view) {
  const tokens = explainedTokens(view.result);
  const first = view.result.aggregate.targets.length;
  const largest = d3.max(lines, (line) => line.shown.largest);
  const reading = make("p", { class: "reading", "aria-hidden": "true" });
  const columns = tokens.map((target, index) => columnHead(target, index, index === first, view));
  const together = isMean(view.result.aggregate) ? "mean" : "sum";
  const corner = [make("th", { scope: "col" }, "by token"), make("th", { scope: "col", class: "numeric" }, together)];
  const rows = lines.map((line) => mapRow(line, tokens, largest, first, view));
  const label = `${title} by token. Arrow keys move. Enter on a row shades the text by it, Enter on a token shows its own explanation.`;
  const table = make("table", { role: "grid", class: "token-map", "aria-label": label }, make("thead", {}, make("tr", {}, corner, columns)), make("tbody", {}, rows));
  table.addEventListener("pointerover", ({ target }) => (reading.textContent = target.closest("[aria-label]:is(td, th)")?.ariaLabel ?? ""));
  walked(table, (cell) => (reading.textContent = cell.ariaLabel ?? ""));
  const figure = make("figure", { class: "data" }, make("div", { class: "scrolling" }, table), make("figcaption", {}, ramp({ largest }), reading));
  figure.append(saveMap(title, lines, tokens, view));
  return figure;
}

function columnHead({ token }, index, divides, view) {
  const own = index < view.result.explanations.length;
  const text = visible(token.text);
  const properties = { class: `turned ${divides ? "other" : ""} ${own ? "choose" : ""}`, "aria-label": own ? `${text}, show its own explanation` : text };
  const head = make("th", { scope: "col", ...properties }, make("span", { class: "token" }, shortened(text, 14)));
  if (own) head.addEventListener("click", () => view.explain(index));
  return head;
}

function mapRow({ shown, name, more = [] }, tokens, largest, first, view) {
  const cells = tokens.map(({ token }, index) => {
    const value = shown.values[index];
    const { side, style } = shadeOf(value, largest);
    const label = isScore(value) ? `${visible(token.text)}: ${shown.read(value)}` : "not known";
    return make("td", { class: `${side} ${index === first ? "other" : ""}`, style, "aria-label": label });
  });
  const head = make("th", { scope: "row" }, make("span", { class: "choose" }, name), more);
  const row = make("tr", {}, head, make("td", { class: "numeric" }, number(shown.together, true)), cells);
  row.addEventListener("click", () => {
    row.parentElement.querySelectorAll("[aria-selected]").forEach((other) => other.removeAttribute("aria-selected"));
    head.setAttribute("aria-selected", "true");
    view.shade(shown);
  });
  return row;
}

/** One stop for Tab; the arrow keys, Home and End move among the cells of a table, Enter and Space click one. */
function walked(table, read) {
  const cell = (row, column) => table.rows[clamp(row, table.rows.length)].cells[clamp(column, table.rows[0].cells.length)];
  let current = cell(1, 0);
  current.tabIndex = 0;
  const go = (next) => {
    current.tabIndex = -1;
    current = next;
    current.tabIndex = 0;
    current.focus();
  };
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] };
  table.addEventListener("focusin", ({ target }) => read(target));
  table.addEventListener("click", ({ target }) => target.closest("td, th") && go(target.closest("td, th")));
  table.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") current.click();
    else if (event.key in steps) go(cell(current.parentElement.rowIndex + steps[event.key][0], current.cellIndex + steps[event.key][1]));
    else return;
    event.preventDefault();
  });
}

function saveMap(title, lines, tokens, view) {
  const heads = tokens.map(({ token }, index) => `${index} ${csvText(token.text)}`);
  const held = lines.some(({ coefficients }) => coefficients?.length);
  const build = () => csv([
    ["row", "sum", ...heads, ...(held ? heads.map((head) => `coefficient at ${head}`) : [])],
    ...lines.map((line) => [line.shown.name, line.shown.together, ...line.shown.values, ...(line.coefficients ?? [])]),
  ]);
  const file = view.file(`${title.toLowerCase().replaceAll(" ", "-")}-by-token`);
  return saveButton("CSV", `Save as CSV: ${title} by token`, `${file}.csv`, "text/csv;charset=utf-8", build);
}
