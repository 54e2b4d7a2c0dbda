// Where the numbers come from: the model, how the rankings were found, and what it took.

function conditionsSection(view) {
  const { model, timings } = view.result;
  const facts = [["model", model.name], ["revision", model.revision], ["type of its weights", model.dtype], ["time", timingsText(timings)], ["written by", view.version]];
  const list = make("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  return section("conditions", "Conditions", list, coverageTable(view));
}

function coverageTable(view) {
  const rows = Object.entries(RANKINGS)
    .filter(([name]) => view.explanation[name])
    .map(([name, title]) => ({ title, ...view.explanation[name].coverage }));
  if (!rows.length) return undefined;
  const count = (field) => ({ title: field, numeric: true, cell: (row) => Number(row[field]).toLocaleString("en"), csv: (row) => Number(row[field]) });
  return dataTable({
    file: view.file("coverage"),
    caption: "How the rankings were found: neurons that exist, were bounded, were scored exactly",
    rows,
    columns: [
      { title: "ranking", cell: (row) => row.title, csv: (row) => row.title },
      { ...count("neurons"), title: "exist" },
      count("bounded"),
      count("scored"),
      { title: "same as scoring all", cell: (row) => (row.exact ? "yes, exact" : "not guaranteed"), csv: (row) => String(row.exact) },
    ],
  });
}

function timingsText(timings) {
  const milliseconds = (name) => `${name} ${(1000 * parseFloat(timings[name])).toFixed(1)} ms`;
  if (timings.cached) return `from the server's cache; ${milliseconds("tokenization")}`;
  const stages = ["queue", "tokenization", "forward", "scoring"].filter((name) => timings[name]);
  return `${stages.map(milliseconds).join(", ")}; batch of ${timings.batch_requests} requests, ${timings.batch_tokens} tokens`;
}
