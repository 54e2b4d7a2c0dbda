// Several explained tokens together: what their log probability is the sum of, token by token.

const TITLE_TOKENS = 8;

/** The aggregate as the sections of one explanation read it. */
function wholeExplanation({ aggregate }) {
  const contrasted = aggregate.contrasts.length + aggregate.contrast_targets.length;
  return { ...aggregate, position: d3.max(aggregate.positions), contrast: contrasted ? {} : undefined };
}

function isMean({ aggregate }) {
  return aggregate === "AGGREGATE_MEAN";
}

function answerTitle(aggregate) {
  const chips = (all) => [all.slice(0, TITLE_TOKENS).map(({ token }) => tokenChip(token)), all.length > TITLE_TOKENS ? " …" : ""];
  const than = aggregate.contrast_targets.length ? [" rather than ", chips(aggregate.contrast_targets)] : [];
  const what = isMean(aggregate) ? "mean log probability" : "log probability";
  const count = aggregate.targets.length;
  const others = than.length ? `, of the other answer ${number(aggregate.contrast_log_probability)}` : "";
  const text = `${what} ${number(aggregate.log_probability)}${others}; ${isMean(aggregate) ? "means" : "sums"} over ${count} token${count === 1 ? "" : "s"}`;
  return make("header", {}, make("h1", {}, "Why ", chips(aggregate.targets), ...than, "?"), note(text));
}

const MAPS = { ffn: "FFN value neurons", attention: "Attention value neurons" };

/** What each neuron did for each token, and the tokens themselves. */
function answerSection(view) {
  const { aggregate, explanations } = view.result;
  const rows = rankedNeurons(aggregate);
  const maps = Object.entries(MAPS)
    .map(([kind, title]) => [title, rows.filter(({ neuron }) => neuron[kind]).map((row) => neuronLine(row, view))])
    .filter(([, lines]) => lines.length)
    .map(([title, lines]) => make("div", {}, make("h3", {}, title), tokenMap(title, lines, view)));
  const folds = quantityGroups(view.result)
    .filter(([name]) => name !== "Neurons")
    .map(([name, quantities]) => folded(`${name} × tokens`, () => tokenMap(name, quantities.map((shown) => ({ shown, name: shown.name })), view)));
  const answers = [["Answer", aggregate.targets], ["The other answer", aggregate.contrast_targets]].filter(([, targets]) => targets.length);
  const tables = answers.map(([name, targets]) => folded(`${name} as a table (${targets.length})`, () => answerTable(name, targets, view)));
  const opens = explanations.length ? " A token at the top of a column opens its own explanation." : "";
  const how = maps.length ? [note("Each neuron stands with what it promotes. A row shades the text above.", opens)] : [];
  return section("answer", "Answer, token by token", ...how, ...maps, ...folds, ...tables);
}

function neuronLine(row, view) {
  const where = row.position === undefined ? [] : [" ", place(row.position, view.result.tokens)];
  const more = [where, " ", chips(promoted(row).slice(0, 3))];
  return { shown: neuronQuantity(row), name: neuronName(row.neuron), more, coefficients: row.token_coefficients };
}

function answerTable(name, targets, view) {
  return dataTable({
    file: view.file(name.toLowerCase().replaceAll(" ", "-")),
    caption: `${name}, token by token`,
    rows: targets,
    columns: [
      { title: "token", cell: (row) => tokenChip(row.token), csv: (row) => csvText(row.token.text) },
      { title: "id", numeric: true, cell: (row) => String(row.token.id), csv: (row) => row.token.id },
      { title: "probability", numeric: true, cell: (row) => number(row.probability), csv: (row) => row.probability },
      { title: "log probability", numeric: true, cell: (row) => number(row.log_probability), csv: (row) => row.log_probability },
      { title: "rank", numeric: true, cell: (row) => String(row.rank), csv: (row) => row.rank },
    ],
  });
}
