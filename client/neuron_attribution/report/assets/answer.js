// Several explained tokens together: the answer as text, and what its log probability is the sum of.

/** The aggregate as the sections of one explanation read it. */
function wholeExplanation({ aggregate }) {
  const contrasted = aggregate.contrasts.length + aggregate.contrast_targets.length;
  return { ...aggregate, position: d3.max(aggregate.positions), contrast: contrasted ? {} : undefined };
}

function isMean({ aggregate }) {
  return aggregate === "AGGREGATE_MEAN";
}

function answerTitle(aggregate) {
  const chips = (predictions) => predictions.map(({ token }) => tokenChip(token));
  const than = aggregate.contrast_targets.length ? [" rather than ", chips(aggregate.contrast_targets)] : [];
  const what = isMean(aggregate) ? "mean log probability" : "log probability";
  const count = aggregate.targets.length;
  const others = than.length ? `, of the other answer ${number(aggregate.contrast_log_probability)}` : "";
  const text = `${what} ${number(aggregate.log_probability)}${others}; ${isMean(aggregate) ? "means" : "sums"} over ${count} token${count === 1 ? "" : "s"}`;
  return make("header", {}, make("h1", {}, "Why ", chips(aggregate.targets), ...than, "?"), note(text));
}

function answerSection(view) {
  const { aggregate } = view.result;
  const answers = [["Answer", aggregate.targets], ["The other answer", aggregate.contrast_targets]].filter(([, targets]) => targets.length);
  const texts = answers.flatMap(([name, targets]) => [
    ...(answers.length > 1 ? [make("h3", {}, name)] : []),
    scrolling(name, make("p", { class: "prompt" }, targets.flatMap(answerToken)), "tall"),
  ]);
  const key = note("Shaded by probability: ", make("span", { class: "token positive key", style: { "--shade": "60%" } }, "what the model expected"), ".");
  const tables = answers.map(([name, targets]) => folded(`${name} as a table (${targets.length})`, () => answerTable(name, targets, view)));
  return section("answer", "Answer", ...texts, key, ...tables);
}

function answerToken({ token, probability, log_probability, rank }) {
  const title = `probability ${percent(probability)}, log probability ${number(log_probability)}, rank ${rank}`;
  const chip = tokenChip(token, { class: "positive", title, style: { "--shade": `${Math.round(60 * probability)}%` } });
  return [chip, make(token.text.includes("\n") ? "br" : "wbr")];
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
