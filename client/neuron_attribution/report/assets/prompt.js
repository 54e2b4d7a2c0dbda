// The prompt, shaded by what attention took from each of its tokens, and what the model predicts after it.

/** What the returned heads take from each position, together. */
function takenByHeads(heads, count) {
  const taken = new Array(count).fill(0);
  for (const head of heads) head.position_scores.forEach((score, position) => (taken[position] += score));
  return taken;
}

function promptSection(view) {
  const { result, explanation } = view;
  const heads = [...explanation.heads, ...explanation.heads_decreasing];
  const taken = takenByHeads(heads, explanation.position + 1);
  const text = promptText(result, explanation.position, taken, view.explainedPositions);
  const shading = heads.length
    ? note(`Shaded by what the ${heads.length} returned heads take from each token: `, shadeKey("positive", "raises the target"), " ", shadeKey("negative", "lowers it"), ".")
    : note("Not shaded: no head positions were asked for.");
  return section("prompt", "Prompt", scrolling("Prompt", text, "tall"), shading, folded(`Tokens as a table (${result.tokens.length})`, () => tokenTable(result.tokens, taken, view)));
}

/** The tokens of the pass: as messages where there are any, else as the text they are. */
function promptText({ tokens, origins = [] }, last, taken, explainedPositions) {
  const chips = tokens.map((token, position) => [promptToken(token, position, last, taken, explainedPositions), make(token.text.includes("\n") ? "br" : "wbr")]);
  return origins.length ? conversation(chips, origins, taken) : make("p", { class: "prompt" }, chips);
}

function promptToken(token, position, last, taken, explainedPositions) {
  const amount = taken[position] ?? 0;
  const { side, style } = shadeOf(amount, d3.max(taken, Math.abs));
  return tokenChip(token, {
    class: `${side} ${position > last ? "later" : ""} ${explainedPositions.has(position) ? "explained" : ""}`,
    title: `position ${position}, id ${token.id}${position > last ? ", after the explained position" : `, taken ${number(amount, true)}`}`,
    style,
  });
}

function shadeKey(kind, text) {
  return make("span", { class: `token ${kind} key`, style: { "--shade": "50%" } }, text);
}

function tokenTable(tokens, taken, view) {
  const rows = tokens.map((token, position) => ({ token, position, taken: taken[position] }));
  return dataTable({
    file: view.file("tokens"),
    caption: "Tokens of the pass",
    rows,
    columns: [
      { title: "position", numeric: true, cell: (row) => String(row.position), csv: (row) => row.position },
      { title: "id", numeric: true, cell: (row) => String(row.token.id), csv: (row) => row.token.id },
      { title: "token", cell: (row) => tokenChip(row.token), csv: (row) => csvText(row.token.text) },
      { title: "taken by the returned heads", numeric: true, cell: (row) => number(row.taken), csv: (row) => row.taken },
    ],
  });
}

/** A live page explains an alternative that is clicked. */
function predictedToken({ token, explained }, { explainToken }) {
  if (!explainToken || explained) return tokenChip(token);
  return make("button", { type: "button", class: "choose", title: "Explain this token instead", onclick: () => explainToken(token) }, tokenChip(token));
}

function predictionSection(view) {
  const { explanation } = view;
  const { target, contrast, spaced_target: spaced } = explanation;
  const same = (prediction) => prediction.token.id === target.token.id;
  const rows = explanation.predictions.map((prediction) => ({ ...prediction, explained: same(prediction) }));
  if (!rows.some(same)) rows.push({ ...target, explained: true });
  for (const other of [contrast, spaced]) {
    if (other && !rows.some((row) => row.token.id === other.token.id)) rows.push(other);
  }
  const roles = new Map([[spaced?.token.id, "behind a space"], [contrast?.token.id, "contrast"], [target.token.id, "explained"]]);
  const role = (row) => roles.get(row.token.id) ?? "alternative";
  const table = dataTable({
    file: view.file("predictions"),
    caption: "Predictions",
    rows,
    columns: [
      { title: "token", cell: (row) => predictedToken(row, view), csv: (row) => csvText(row.token.text) },
      { title: "", cell: role },
      { title: "role", csv: role },
      { title: "id", numeric: true, cell: (row) => String(row.token.id), csv: (row) => row.token.id },
      { title: "probability", numeric: true, cell: (row) => number(row.probability), csv: (row) => row.probability },
      { title: "log probability", numeric: true, cell: (row) => number(row.log_probability), csv: (row) => row.log_probability },
      { title: "rank", numeric: true, cell: (row) => String(row.rank), csv: (row) => row.rank },
    ],
  });
  const drawing = chart("The most probable next tokens; the table beneath holds the numbers", (width) => predictionChart(rows, width));
  const meant = spaced ? [note(tokenChip(spaced.token), ` begins with a space and ranks ${spaced.rank}; ${target.token.text} without one ranks ${target.rank}. Which was meant?`)] : [];
  return section("prediction", "Prediction", ...meant, drawing, folded("As a table", () => table));
}
