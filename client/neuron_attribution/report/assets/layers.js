// Scores of whole layers: what moved the log probability from the embedding to the final state.

function layersSection(view) {
  const { layers, contrast } = view.explanation;
  if (!layers) return undefined;
  const what = contrast ? "log probability of the target minus that of the contrast" : "log probability of the target";
  return section(
    "layers",
    "Layers",
    journey(layers, what),
    kindKey(),
    chart("Attention and FFN score of every layer; the table beneath holds the numbers", (width) => layerChart(layers, width)),
    folded("Layers as a table", () => layerTable(layers, view)),
  );
}

function journey(layers, what) {
  const steps = [
    ["at the bare embedding", number(layers.embedding_log_probability), ""],
    ["attention layers", number(d3.sum(layers.attention), true), "attention"],
    ["FFN layers", number(d3.sum(layers.ffn), true), "ffn"],
    ["at the final state", number(layers.final_log_probability), ""],
  ];
  return make(
    "dl",
    { class: "journey", "aria-label": what },
    steps.map(([name, value, kind]) => make("div", { class: kind }, make("dt", {}, name), make("dd", {}, value))),
  );
}

function kindKey() {
  const kinds = ["attention", "FFN"];
  return make("p", { class: "keys" }, kinds.map((kind) => make("span", { class: `swatch ${kind.toLowerCase()}` }, kind)));
}

function layerTable(layers, view) {
  return dataTable({
    file: view.file("layers"),
    caption: "Layer scores, nats",
    rows: layers.ffn.map((ffn, layer) => ({ layer, ffn, attention: layers.attention[layer] })),
    columns: [
      { title: "layer", numeric: true, cell: (row) => String(row.layer), csv: (row) => row.layer },
      { title: "attention", numeric: true, cell: (row) => number(row.attention), csv: (row) => row.attention },
      { title: "ffn", numeric: true, cell: (row) => number(row.ffn), csv: (row) => row.ffn },
    ],
  });
}
