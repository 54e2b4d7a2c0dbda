// Two predictions side by side, and what differs between them.

const SIDES = ["first", "second"];
const COMPARED_KINDS = { ffn_neurons: "FFN neurons", attention_neurons: "attention neurons" };
const ENDS = { fell: "that gave the first side more", rose: "that gave the second side more" };

/** Shows a comparison as `compare --json` prints it. */
function showComparison(root, { result, version }) {
  const sections = [sidesSection, layerDifferences, headDifferences, neuronDifferences, comparisonConditions].map((build) => build(result, version));
  const [first, second] = SIDES.map((side) => tokenChip(result[side].target.token));
  const heading = make("header", {}, make("h1", {}, "Why ", first, " here and ", second, " there?"), note("A difference is the first side's score minus the second's."));
  root.replaceChildren(make("div", { class: "explanation" }, heading, contents(sections), ...sections));
}

function sidesSection(result) {
  const boxes = SIDES.map((side) => make("div", {}, make("h3", {}, `The ${side} side`), sidePrompt(result[side])));
  const table = dataTable({
    file: "sides",
    caption: "Predictions of both sides",
    rows: SIDES.map((side) => ({ side, ...result[side].target })),
    columns: [
      { title: "side", cell: (row) => row.side, csv: (row) => row.side },
      { title: "token", cell: (row) => tokenChip(row.token), csv: (row) => csvText(row.token.text) },
      { title: "probability", numeric: true, cell: (row) => number(row.probability), csv: (row) => row.probability },
      { title: "log probability", numeric: true, cell: (row) => number(row.log_probability), csv: (row) => row.log_probability },
      { title: "rank", numeric: true, cell: (row) => String(row.rank), csv: (row) => row.rank },
    ],
  });
  return section("sides", "Sides", make("div", { class: "columns" }, boxes), table);
}

function sidePrompt({ tokens }) {
  const chips = tokens.flatMap((token) => [tokenChip(token), make(token.text.includes("\n") ? "br" : "wbr")]);
  return scrolling("Prompt", make("p", { class: "prompt" }, chips), "tall");
}

function layerDifferences({ attention_layers: attention, ffn_layers: ffn }) {
  const layers = { attention, ffn };
  const drawing = chart("Differences of attention and FFN scores of every layer; the table beneath holds the numbers", (width) => layerChart(layers, width));
  return section("layers", "Layers", kindKey(), drawing, folded("Layers as a table", () => layerTable(layers, { file: () => "layer-differences" })));
}

function headDifferences({ heads, first, second }) {
  const scores = { shape: [heads.length, heads[0].length], values: heads.flat() };
  const detail = make("p", { class: "note", "aria-live": "polite" });
  const selection = {
    listeners: [],
    known: { has: () => true },
    select(head) {
      this.head = head;
      const [one, other] = [first, second].map((side) => number(side.head_scores[head.layer][head.head], true));
      detail.textContent = `Head ${headName(head)}: ${one} on the first side, ${other} on the second.`;
      this.listeners.forEach((listener) => listener(head));
    },
  };
  const table = folded("All heads as a table", () => headTable(scores, { file: () => "head-differences" }));
  return section("heads", "Heads", headMap(scores, selection), detail, table);
}

function neuronDifferences(result) {
  const tables = Object.entries(COMPARED_KINDS).flatMap(([kind, title]) => Object.keys(ENDS).map((end) => differenceTable(result[kind][end], `${title} ${ENDS[end]}`, `${kind}-${end}`)));
  return section("neurons", "Neurons", note("Open a neuron to see both ends of its projection into the vocabulary."), ...tables);
}

function differenceTable({ neurons }, caption, file) {
  const largest = d3.max(neurons, (row) => Math.abs(row.difference));
  const sides = SIDES.flatMap((side) =>
    ["score", "coefficient"].map((value) => ({ title: `${value}, ${side}`, numeric: true, cell: (row) => number(row[side][value]), csv: (row) => row[side][value] })),
  );
  const name = (part) => (row) => row.neuron.split(".")[part];
  return dataTable({
    file: file.replaceAll("_", "-"),
    caption,
    rows: neurons,
    columns: [
      { title: "neuron", cell: (row) => row.neuron },
      { title: "layer", csv: (row) => Number(name(0)(row)) },
      { title: "neuron within the layer", csv: (row) => csvText(row.neuron.split(".").slice(1).join(".")) },
      { title: "difference", numeric: true, cell: (row) => barredNumber(row.difference, largest), csv: (row) => row.difference },
      ...sides,
      { title: "promotes on that side", cell: (row) => chips(promotedThere(row)), csv: (row) => csvText(promotedThere(row).map(({ token }) => token.text).join(" | ")) },
    ],
    more: (row) => row.first.projection && (() => make("div", { class: "projection" }, ["top", "bottom"].map((side) => comparedProjection(row, side)))),
  });
}

/** What the neuron raises on the side where it does more. */
function promotedThere(row) {
  return (row.difference < 0 ? row.second : row.first).promoted.slice(0, 6);
}

function comparedProjection(row, side) {
  const chosen = row.first.projection[side];
  return dataTable({
    file: `neuron-${row.neuron}-${side}`,
    caption: `${row.neuron}: ${side} tokens`,
    rows: chosen,
    columns: [
      { title: "token", cell: ({ token }) => tokenChip(token), csv: ({ token }) => csvText(token.text) },
      { title: "id", numeric: true, cell: ({ token }) => String(token.id), csv: ({ token }) => token.id },
      { title: "score", numeric: true, cell: ({ score }) => number(score), csv: ({ score }) => score },
    ],
  });
}

function comparisonConditions(result, version) {
  const named = ({ name, revision, dtype }) => `${name} (revision ${revision}, ${dtype})`;
  const guarantee = ([kind, title]) => {
    const { neurons, scored, fell, rose } = result[kind];
    const exact = fell.exact && rose.exact ? "the same as scoring all" : "not guaranteed to be the same as scoring all";
    return [title, `${neurons.toLocaleString("en")} exist, ${scored.toLocaleString("en")} scored on both sides, ${exact}`];
  };
  const facts = [...SIDES.map((side) => [`${side} side`, named(result[side].model)]), ...Object.entries(COMPARED_KINDS).map(guarantee), ["written by", version]];
  return section("conditions", "Conditions", make("dl", { class: "facts" }, facts.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
}
