// Rankings of neurons, each with what it means in the vocabulary.

const RANKINGS = {
  ffn_value_neurons: "FFN value neurons",
  ffn_value_neurons_decreasing: "FFN value neurons that lower the target",
  attention_value_neurons: "Attention value neurons",
  attention_value_neurons_decreasing: "Attention value neurons that lower the target",
  query_ffn_neurons: "Query FFN neurons",
  query_ffn_neurons_decreasing: "Query FFN neurons that suppress",
};

const VALUE_RANKINGS = Object.keys(RANKINGS).slice(0, 4);
const QUERY_RANKINGS = Object.keys(RANKINGS).slice(4);

function valueNeuronsSection(view) {
  const { explanation } = view;
  const tables = rankingTables(VALUE_RANKINGS, view);
  if (explanation.neurons.length) tables.push(neuronTable("neurons", "Neurons asked for", explanation.neurons, view));
  if (!tables.length) return undefined;
  const content = section("neurons", "Value neurons", note("Open a neuron to see both ends of its projection into the vocabulary."), ...tables);
  content.firstChild.after(...commonSwitch(content));
  return content;
}

/** Hides the neurons that are as strong whatever is asked, where there are any. */
function commonSwitch(content) {
  if (!content.querySelector("tr.faint")) return [];
  const box = make("input", { type: "checkbox", onchange: () => content.classList.toggle("without-faint", box.checked) });
  return [make("label", { class: "switch" }, box, " Hide neurons, grey here, that are as strong in a quarter of all contexts, or more")];
}

function rankingTables(names, view) {
  return names
    .filter((name) => view.explanation[name])
    .map((name) => neuronTable(name.replaceAll("_", "-"), RANKINGS[name], view.explanation[name].neurons, view, name.endsWith("decreasing")));
}

function neuronTable(file, title, neurons, view, falling = false) {
  const { tokens } = view.result;
  const largest = d3.max(neurons, (neuron) => Math.abs(neuron.score));
  const has = (field) => neurons.some((neuron) => neuron[field] !== undefined);
  const known = neurons.some(({ promoted_side: side }) => side !== "PROMOTED_SIDE_UNSPECIFIED");
  const end = known && falling ? suppressed : promoted;
  const columns = [
    { title: "neuron", cell: (row) => neuronName(row.neuron) },
    ...nameColumns(),
    has("position") && { title: "source position", cell: (row) => (row.position === undefined ? "" : place(row.position, tokens)), csv: (row) => row.position },
    { title: "score", numeric: true, cell: (row) => barredNumber(row.score, largest), csv: (row) => row.score },
    has("coefficient") && { title: "coefficient", numeric: true, cell: (row) => number(row.coefficient), csv: (row) => row.coefficient },
    has("activity") && { title: "active in", numeric: true, cell: (row) => (row.activity === undefined ? "" : `${Math.round(100 * row.activity)} %`), csv: (row) => row.activity },
    ...standingColumns(has),
    { title: known ? (falling ? "suppresses" : "promotes") : "top tokens", cell: (row) => chips(end(row)), csv: (row) => csvText(end(row).map(({ token }) => token.text).join(" | ")) },
  ];
  const more = (row) => row.projection && (() => projectionOf(row, view));
  const opened = (row) => view.shade(quantityOfNeuron(row, view.result));
  return dataTable({ file: view.file(file), caption: title, rows: neurons, columns: columns.filter(Boolean), more, opened, isFaint: isCommon });
}

/** Where the target stands in a neuron's projection; beside a contrast what counts are the values of both. */
function standingColumns(has) {
  const rank = (token) => has(token) && { title: `${token} rank`, numeric: true, cell: (row) => String(row[token]?.rank ?? ""), csv: (row) => row[token]?.rank };
  const value = (token) => has(token) && { title: `${token} value`, numeric: true, cell: has("contrast") && ((row) => number(row[token]?.score)), csv: (row) => row[token]?.score };
  return ["target", "contrast"].flatMap((token) => [rank(token), value(token)]);
}

/** A neuron's name in parts: as one number, 24.100 would become 24.1 in a spreadsheet. */
function nameColumns() {
  const part = (title, read) => ({ title, csv: ({ neuron }) => read(neuron.ffn ?? neuron.attention) });
  return [part("layer", (name) => name.layer), part("head", (name) => name.head), part("expert", (name) => name.expert), part("index", (name) => name.index)];
}

function chips(projected) {
  return make("span", { class: "chips" }, projected.map(({ token }) => tokenChip(token)));
}

function projectionOf(row, view) {
  const box = make("div", { class: "projection" });
  const show = (projection) => box.replaceChildren(...["top", "bottom"].map((side) => projectionTable(row, side, projection[side], view)));
  show(row.projection);
  view.fetchProjection?.(row.neuron).then(show, () => undefined);
  return view.zero ? make("div", {}, zeroing(row.neuron, view), box) : box;
}

function projectionTable(row, side, projected, view) {
  const name = neuronName(row.neuron);
  const raised = { PROMOTED_SIDE_TOP: "top", PROMOTED_SIDE_BOTTOM: "bottom" }[row.promoted_side];
  const effect = raised === undefined ? "" : side === raised ? " (raised here)" : " (lowered here)";
  return dataTable({
    file: view.file(`neuron-${name}-${side}`),
    caption: `${name}: ${side} tokens${effect}`,
    rows: projected,
    columns: [
      { title: "token", cell: ({ token }) => tokenChip(token), csv: ({ token }) => csvText(token.text) },
      { title: "id", numeric: true, cell: ({ token }) => String(token.id), csv: ({ token }) => token.id },
      { title: "score", numeric: true, cell: ({ score }) => number(score), csv: ({ score }) => score },
    ],
  });
}
