// A graph of a prediction as the page walks it: what each node gets and gives, with groups in place of their members.

const NODE_KINDS = {
  TRACE_NODE_KIND_TOKEN: "token",
  TRACE_NODE_KIND_FFN_NEURON: "neuron",
  TRACE_NODE_KIND_BIAS: "bias",
  TRACE_NODE_KIND_OUTPUT: "output",
};

/**
 * The nodes and edges that are drawn. `groups` are {name, members}, members as indices of the result's nodes.
 * An edge has its share with the sign of what it does to its target (`signed`), and its influence: the part of the
 * output's edges that reach the output through it, as products of shares.
 */
function drawnGraph(result, groups = []) {
  const singles = result.nodes.map((node, index) => drawnNode(node, index, result));
  const influence = influences(result);
  const grouped = groups.map((group, number) => groupNode(group, number, singles));
  const home = new Map(grouped.flatMap((group) => group.members.map((member) => [member, group])));
  const homeOf = (index) => home.get(index) ?? singles[index];
  const nodes = [...singles.filter(({ index }) => !home.has(index)), ...grouped];
  const edges = new Map();
  for (const edge of result.edges) {
    const { source, target } = edge;
    addEdge(edges, edge, homeOf(source), homeOf(target), result.nodes[target], influence[target]);
  }
  for (const node of nodes) Object.assign(node, { gets: [], gives: [] });
  for (const edge of edges.values()) {
    edge.target.gets.push(edge);
    edge.source.gives.push(edge);
  }
  for (const node of nodes) {
    node.gets.sort((one, other) => Math.abs(other.signed) - Math.abs(one.signed));
    node.gives.sort((one, other) => other.influence - one.influence);
  }
  return { nodes, edges: d3.sort(edges.values(), (edge) => -edge.influence) };
}

function drawnNode(node, index, { tokens, targets }) {
  const kind = NODE_KINDS[node.kind];
  const common = { ...node, index, kind, id: `node-${index}`, members: [index] };
  if (kind === "output") return { ...common, name: "output", label: visible(targets.map(({ token }) => token.text).join("")), layer: Infinity };
  if (kind === "token") return { ...common, name: `token ${node.position}`, label: visible(tokens[node.position].text), layer: -1 };
  if (kind === "bias") return { ...common, name: `biases of layer ${node.layer}`, label: "biases", position: undefined };
  const name = `${neuronName({ ffn: node.neuron })} at ${node.position}`;
  const [first] = promoted(node);
  return { ...common, name, label: first ? visible(first.token.text) : neuronName({ ffn: node.neuron }), layer: node.neuron.layer };
}

/** The tokens of a chat template at positions without neurons, as a group: none, or one. */
function templateGroups({ nodes, origins = [] }) {
  const busy = new Set(nodes.filter(({ neuron }) => neuron).map(({ position }) => position));
  const isFolded = ({ kind, position }) => NODE_KINDS[kind] === "token" && origins[position]?.template && !busy.has(position);
  const members = d3.range(nodes.length).filter((index) => isFolded(nodes[index]));
  return members.length > 1 ? [{ name: `⋯${members.length} template`, members }] : [];
}

/** A group stands where its member of the largest effect would. */
function groupNode({ name, members }, number, singles) {
  const nodes = members.map((member) => singles[member]);
  const strongest = d3.greatest(nodes, strengthOf);
  const sum = (field) => (nodes.every((node) => isScore(node[field])) ? d3.sum(nodes, (node) => node[field]) : undefined);
  const { layer, position } = strongest;
  return { kind: "group", id: `group-${number}`, name, label: name, members, nodes, layer, position, relevance: sum("relevance"), effect: sum("effect") };
}

/** How much of the output's edges reach it through each node. */
function influences({ nodes, edges }) {
  const given = d3.group(edges, ({ source }) => source);
  const known = new Map();
  const influence = (index) => {
    if (nodes[index].kind === "TRACE_NODE_KIND_OUTPUT") return 1;
    if (!known.has(index)) known.set(index, d3.sum(given.get(index) ?? [], (edge) => edge.share * influence(edge.target)));
    return known.get(index);
  };
  return nodes.map((_, index) => influence(index));
}

function addEdge(edges, edge, source, target, receiver, influence) {
  if (source === target) return;
  const key = `${source.id} ${target.id}`;
  if (!edges.has(key)) edges.set(key, { source, target, signed: 0, influence: 0, single: edge });
  const drawn = edges.get(key);
  const sign = edge.contribution * receiver.activation < 0 ? -1 : 1;
  drawn.signed += sign * edge.share * partOf(receiver, target);
  drawn.influence += edge.share * influence;
  if (drawn.single !== edge) drawn.single = undefined;
}

/** What gets into a group counts as its members do for the output. */
function partOf(receiver, target) {
  if (target.kind !== "group") return 1;
  return Math.abs(receiver.relevance) / (d3.sum(target.nodes, ({ relevance }) => Math.abs(relevance)) || 1);
}

/** What a node did, as well as it is known: measured, else to first order, else in the frozen linear model. */
function strengthOf({ effect, gradient, relevance }) {
  return Math.abs(effect ?? gradient ?? relevance ?? 0);
}

function didOf({ kind, effect, gradient, relevance }) {
  return ["neuron", "group"].includes(kind) ? (effect ?? gradient ?? relevance ?? 0) : 0;
}

/** The strongest way from a node up to the output, and down to a token: edges in the order they are walked. */
function strongestPath(node, up) {
  const path = [];
  const seen = new Set([node]);
  for (let here = node; here; ) {
    const edge = (up ? here.gives : here.gets).find((each) => !seen.has(up ? each.target : each.source));
    if (edge) path.push(edge);
    here = edge && (up ? edge.target : edge.source);
    seen.add(here);
  }
  return path;
}
