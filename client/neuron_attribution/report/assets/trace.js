// A trace as a page: the graph, what a node did, and groups of neurons.

/** Shows a TraceResponse (canonical protobuf JSON); `live` may hold zeroMembers. */
function showTrace(root, { result, version }, live = {}) {
  const view = { result, version, explanation: {}, file: (name) => `trace-${name}`, ...live };
  const page = new TracePage(view);
  const sections = [page.section, nodesSection(view), conditionsSection(view)];
  root.replaceChildren(make("div", { class: "explanation" }, traceTitle(result), contents(sections), ...sections));
}

function traceTitle({ targets, contrasts, log_odds: odds, output, coverage, nodes, edges }) {
  const chips = (predictions) => predictions.slice(0, TITLE_TOKENS).map(({ token }) => tokenChip(token));
  const than = contrasts.length ? [" rather than ", chips(contrasts)] : [];
  const what = contrasts.length ? "difference of the logits" : "log odds";
  const share = (value) => `${value < 0 ? "−" : ""}${Math.abs(100 * value).toFixed(0)} %`;
  const there = Number(coverage.neuron_positions).toLocaleString("en");
  return make(
    "header",
    {},
    make("h1", {}, "What carried ", chips(targets), ...than, "?"),
    note(`${what} ${number(odds, true)}; in the frozen linear model ${number(output, true)}. ${nodes.length} nodes, ${edges.length} edges.`),
    note(
      `Of ${there} neurons at positions ${coverage.screened} passed a screening, a heuristic, and ${coverage.measured} were measured. `,
      `The output's edges here are ${share(coverage.output_edges)} of its value, paths from tokens and biases `,
      `${share(coverage.output_paths)}; edges here have ${share(coverage.edges)} of all magnitudes.`,
    ),
  );
}

/** The graph with what is chosen in it. */
class TracePage {
  constructor(view) {
    Object.assign(this, { view, groups: templateGroups(view.result), pins: new Set() });
    this.detail = make("div", { class: "detail" });
    this.groupBox = make("div", { class: "groups" });
    this.reading = make("p", { class: "reading", role: "status" });
    this.drawing = new GraphDrawing({
      looked: (node) => (this.reading.textContent = spokenNode(node)),
      chosen: (node) => this.choose(node),
      pinned: (node) => this.pin(node),
    });
    this.amount = make("input", { type: "range", min: "0", oninput: () => this.drawing.showEdges(Number(this.amount.value)) });
    const bar = make("div", { class: "bar" }, make("label", {}, "Edges shown, by influence ", this.amount), this.key(), this.reading);
    const side = make("div", { class: "side" }, this.detail, this.groupBox);
    this.section = section("graph", "Graph", bar, make("div", { class: "graph-columns" }, this.drawing.element, side));
    this.redraw();
    this.choose(this.graph.nodes.find(({ kind }) => kind === "output"));
  }

  key() {
    const keys = [["positive", "raises"], ["negative", "lowers"]].map(([side, text]) => make("span", { class: `swatch ${side}` }, text));
    const by = this.view.result.coverage.measured ? "measured effect" : "gradient times activation";
    return make("span", { class: "keys" }, keys, `boxes: by ${by}; edges: width by share, colour by what they do to the node they enter`);
  }

  redraw() {
    this.graph = drawnGraph(this.view.result, this.groups);
    this.amount.max = String(this.graph.edges.length);
    this.amount.value = String(Math.min(this.drawing.edgesShown, this.graph.edges.length));
    if (this.drawing.element.isConnected) this.drawing.draw(this.graph);
    else this.drawing.graph = this.graph;
    this.drawing.pins = this.pins;
    this.groupBox.replaceChildren(...groupsPanel(this));
  }

  choose(node) {
    this.detail.replaceChildren(...nodeDetail(node, this));
  }

  go(node) {
    this.drawing.go(node);
    this.choose(node);
  }

  /** Pins a neuron, or takes it off. */
  pin(node) {
    if (node.kind !== "neuron") return;
    if (!this.pins.delete(node.index)) this.pins.add(node.index);
    this.drawing.mark(this.pins);
    this.groupBox.replaceChildren(...groupsPanel(this));
  }

  /** Makes one node of what is pinned. */
  group(name) {
    this.groups.push({ name, members: [...this.pins] });
    this.pins.clear();
    this.redraw();
    this.go(this.graph.nodes.at(-1));
  }

  ungroup(number) {
    this.groups.splice(number, 1);
    this.redraw();
    this.choose(this.graph.nodes.find(({ kind }) => kind === "output"));
  }
}

function groupsPanel(page) {
  const { result } = page.view;
  const pinned = [...page.pins].map((index) => drawnNode(result.nodes[index], index, result));
  const name = make("input", { value: pinned[0]?.label ?? "", "aria-label": "Name of the group", spellcheck: "false" });
  const submit = (event) => (event.preventDefault(), page.group(name.value || "group"));
  const names = make("p", {}, `Pinned: ${pinned.map((node) => node.name).join(", ")}`);
  const makeOne = make("form", { onsubmit: submit }, names, name, make("button", { type: "submit" }, "Make one node of them"));
  const known = page.groups.map((group, number) => {
    const apart = make("button", { type: "button", onclick: () => page.ungroup(number) }, `Take ${group.name} apart`);
    return make("li", {}, `${group.name} (${group.members.length}) `, apart);
  });
  const offered = pinned.length ? makeOne : note("Pin neurons (P, or shift and click) to make one node of them.");
  return [make("h3", {}, "Groups"), offered, ...(known.length ? [make("ul", {}, known)] : [])];
}

function nodeDetail(node, page) {
  const { view } = page;
  const pin = () => make("button", { type: "button", onclick: () => page.pin(node) }, "Pin");
  const neuron = node.kind === "neuron" ? [...neuronFacts(node, view), pin()] : [];
  return [nodeTitle(node), ...whatItDid(node, view), ...neuron, ...membersZeroing(node, view), ...edgeLists(node, page)];
}

function nodeTitle({ kind, name, label }) {
  const titles = { group: `Group ${name}`, neuron: `Neuron ${name}`, output: "The output" };
  const text = ["token", "output"].includes(kind) ? [" ", make("bdi", { class: "token" }, label)] : [];
  return make("h3", {}, titles[kind] ?? name, text);
}

/** What becomes of the output without it: as it was measured. */
function whatItDid(node, { result }) {
  const what = result.contrasts.length ? "difference of the logits" : "log odds";
  const relevance = `Relevance ${number(node.relevance, true)}`;
  const effect = number(node.effect, true);
  if (node.kind === "group") {
    const sum = effect && ` Alone, each at its position, their measured effects are ${effect} together: not what zeroing all of them does.`;
    return [note(`${node.nodes.map(({ name }) => name).join(", ")}. ${relevance}.${sum}`)];
  }
  if (node.kind !== "neuron") return [note(relevance, node.other ? `; from what the graph leaves out ${number(node.other, true)}` : "", ".")];
  if (!effect) return [note("Its effect was not measured.")];
  const change = `${number(result.log_odds, true)} → ${number(result.log_odds - node.effect, true)}`;
  const text = `Zeroed at position ${node.position}: ${what} ${change}`;
  return [make("p", { class: "measured" }, text, make("br"), make("strong", {}, `effect ${effect}`), ", measured")];
}

function neuronFacts(node, { result }) {
  const numbers = { activation: "activation", gradient: "gradient", relevance: "relevance", other: "left out" };
  const facts = [
    ["at", place(node.position, result.tokens)],
    ["promotes", chips(promoted(node).slice(0, 6))],
    ...Object.entries(numbers).map(([field, name]) => [name, number(node[field], true)]),
  ];
  const usual = node.always_on ? [note("It is on whatever is asked.")] : [];
  return [make("dl", { class: "facts" }, facts.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])), ...usual];
}

const LISTED = 8;

function edgeLists(node, page) {
  const lists = [["Gets from", node.gets, "source"], ["Gives to", node.gives, "target"]].filter(([, edges]) => edges.length);
  const item = (node, edge) => {
    const go = make("button", { type: "button", class: "choose", onclick: () => page.go(node) }, node.label);
    return make("li", {}, go, " ", make("span", { class: "position" }, node.name), ` ${edgeText(edge)}`);
  };
  return lists.flatMap(([title, edges, end]) => [
    make("h4", {}, `${title} (${edges.length})`),
    make("ul", { class: "ends" }, edges.slice(0, LISTED).map((edge) => item(edge[end], edge))),
  ]);
}

function edgeText({ signed, single }) {
  const head = single?.head ? `, by ${headName(single.head)} ${number(single.head_contribution, true)}` : "";
  return `${signed < 0 ? "−" : "+"}${(100 * Math.abs(signed)).toFixed(2)} %${head}`;
}

/** A live page zeroes a neuron or a group, by a call of its own. */
function membersZeroing(node, view) {
  const members = node.nodes ?? [node];
  if (!view.zeroMembers || members.some(({ kind }) => kind !== "neuron")) return [];
  return [zeroingBox(node.name, () => view.zeroMembers(members), view)];
}

function nodesSection(view) {
  const { result } = view;
  const { nodes } = drawnGraph(result);
  const value = (field) => ({ title: field, numeric: true, cell: (row) => number(row[field]), csv: (row) => row[field] });
  const table = () => dataTable({
    file: view.file("nodes"),
    caption: "Nodes",
    rows: nodes,
    columns: [
      { title: "node", cell: (row) => row.name, csv: (row) => row.name },
      { title: "promotes, or is", cell: (row) => make("bdi", { class: "token" }, row.label), csv: (row) => csvText(row.label) },
      ...["activation", "effect", "gradient", "relevance", "other"].map(value),
    ],
  });
  const edges = () => dataTable({
    file: view.file("edges"),
    caption: "Edges",
    rows: result.edges,
    columns: [
      { title: "source", cell: (row) => nodes[row.source].name, csv: (row) => nodes[row.source].name },
      { title: "target", cell: (row) => nodes[row.target].name, csv: (row) => nodes[row.target].name },
      ...["contribution", "share"].map(value),
      { title: "head", cell: (row) => (row.head ? headName(row.head) : ""), csv: (row) => row.head && headName(row.head) },
    ],
  });
  return section("nodes", "As tables", folded(`Nodes (${nodes.length})`, table), folded(`Edges (${result.edges.length})`, edges));
}
