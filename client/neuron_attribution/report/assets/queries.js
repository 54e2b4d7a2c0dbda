// What activates the value neurons: layers and FFN neurons, drawn as what feeds what.

const FLOW_COLUMNS = ["what activates", "value neurons", "the strongest of them", "target"];
const FLOW_SOURCES = 6;
const COMPONENT_COLOURS = { COMPONENT_KIND_ATTENTION: "var(--attention)", COMPONENT_KIND_FFN: "var(--ffn)" };

function queriesSection(view) {
  const { explanation } = view;
  const tables = [
    ...rankingTables(QUERY_RANKINGS, view),
    ...queryLayerTables(explanation, view),
  ];
  if (!tables.length) return undefined;
  const flow = flowOf(explanation);
  const drawing = chart("What activates the value neurons, and what they add to the target; the tables beneath hold the numbers", (width) => flowChart(flow, width), 760);
  const text = "Each line is as wide as its score. On the left what activates the value neurons, on the right what those add to the target.";
  return section("queries", "What activates them", note(text), scrolling("What feeds what", drawing), ...tables);
}

function queryLayerTables(explanation, view) {
  const kinds = { ffn_query_layers: "FFN", attention_query_layers: "attention" };
  return Object.entries(kinds)
    .filter(([part]) => explanation[part])
    .map(([part, kind]) => folded(`Query layers of the ${kind} value neurons as a table`, () => queryLayerTable(part, kind, explanation[part], view)));
}

function queryLayerTable(part, kind, { layers, sources, skipped_sources: skipped }, view) {
  return dataTable({
    file: view.file(part.replaceAll("_", "-")),
    caption: `Query layers of the ${kind} value neurons (${sources} sources, ${skipped} skipped)`,
    rows: layers,
    columns: [
      { title: "layer", cell: componentName, csv: componentName },
      { title: "score", numeric: true, cell: (row) => number(row.score), csv: (row) => row.score },
    ],
  });
}

/** The diagram's nodes and links: two groups of value neurons, one beneath the other. */
function flowOf(explanation) {
  const groups = [
    flowGroup("FFN value neurons", "ffn", layerSources(explanation.ffn_query_layers), explanation.ffn_value_neurons),
    flowGroup("attention value neurons", "attention", [...layerSources(explanation.attention_query_layers), ...neuronSources(explanation.query_ffn_neurons)], explanation.attention_value_neurons),
  ].filter((group) => group.height > 0);
  const target = { name: shortened(visible(explanation.target.token.text)), column: 3, group: true };
  const flow = { nodes: [target], links: [], columns: FLOW_COLUMNS };
  let row = 0;
  for (const group of groups) {
    placeGroup(group, row, flow, target);
    row += group.height + 1;
  }
  target.row = Math.max(0, row - 2) / 2;
  return flow;
}

function flowGroup(name, kind, sources, ranking) {
  const neurons = (ranking?.neurons ?? []).slice(0, FLOW_SOURCES).map(({ neuron, score }) => ({ name: neuronName(neuron), score }));
  return { name, kind, sources, neurons, height: Math.max(sources.length, neurons.length) };
}

function layerSources(query) {
  return (query?.layers ?? []).slice(0, FLOW_SOURCES).map((layer) => ({ name: componentName(layer), score: layer.score, colour: COMPONENT_COLOURS[layer.kind] ?? "var(--weight)" }));
}

function neuronSources(ranking) {
  return (ranking?.neurons ?? []).slice(0, FLOW_SOURCES).map(({ neuron, score }) => ({ name: `FFN neuron ${neuronName(neuron)}`, score, colour: "var(--ffn)" }));
}

function placeGroup(group, top, flow, target) {
  const middle = { name: group.name, column: 1, row: top + (group.height - 1) / 2, group: true };
  flow.nodes.push(middle);
  const column = (items, number, link) =>
    items.forEach((item, index) => {
      const node = { name: item.name, column: number, row: top + index + (group.height - items.length) / 2 };
      flow.nodes.push(node);
      link(node, item);
    });
  column(group.sources, 0, (node, { score, colour: stroke }) => flow.links.push({ source: node, target: middle, score, colour: stroke }));
  column(group.neurons, 2, (node, { score }) => {
    flow.links.push({ source: middle, target: node, colour: "var(--line)" });
    flow.links.push({ source: node, target, score, colour: `var(--${group.kind})` });
  });
}
