// The drawing of a graph: boxes and the edges between them, and what is lit while a node is looked at.

const EDGES_AT_FIRST = 150;

const GRAPH_LABEL =
  "Graph. Arrow down and up follow the strongest edge to what a node gets from and gives to; " +
  "left and right try the next strongest. Enter shows a node, P pins it.";

class GraphDrawing {
  /** `looked` hears of a node that is pointed at, `chosen` of one that is clicked, `pinned` of one that is to be pinned. */
  constructor({ looked, chosen, pinned }) {
    Object.assign(this, { looked, chosen, pinned, edgesShown: EDGES_AT_FIRST, pins: new Set() });
    this.element = make("div", { class: "graph scrolling", role: "group", "aria-label": GRAPH_LABEL });
    this.element.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.graph && this.element.clientWidth !== this.drawnWidth && this.draw(this.graph)).observe(this.element);
  }

  draw(graph) {
    this.graph = graph;
    this.drawnWidth = this.element.clientWidth;
    const { width, height, rows, columns, shown } = placeNodes(graph, this.drawnWidth - 4);
    const svg = d3.create("svg").attr("width", width).attr("height", height);
    this.largest = d3.max(graph.edges, ({ signed }) => Math.abs(signed)) ?? 1;
    const strength = d3.max(shown, (node) => (node.kind === "neuron" || node.kind === "group" ? strengthOf(node) : 0)) || 1;
    this.base = svg.append("g").attr("class", "edges").attr("aria-hidden", "true");
    this.lit = svg.append("g").attr("class", "edges lit").attr("aria-hidden", "true");
    this.grid(svg, rows, width);
    this.boxes = svg.append("g").selectAll("g").data(shown).join("g");
    this.boxes.attr("class", (node) => `node ${node.kind} ${didOf(node) < 0 ? "negative" : ""} ${node.always_on ? "always-on" : ""}`)
      .attr("id", (node) => node.id).attr("transform", (node) => `translate(${node.x},${node.y})`)
      .attr("role", "button").attr("tabindex", -1).attr("aria-label", spokenNode)
      .style("--shade", (node) => `${Math.round(70 * Math.min(1, Math.abs(didOf(node)) / strength) ** 0.6)}%`)
      .on("pointerenter", (_, node) => this.light(node)).on("pointerleave", () => this.light(this.current))
      .on("focus", (_, node) => this.arrive(node))
      .on("click", (event, node) => (event.shiftKey ? this.pinned(node) : this.choose(node)));
    this.boxes.append("rect").attr("x", (node) => -node.width / 2).attr("y", -BOX.height / 2)
      .attr("width", (node) => node.width).attr("height", BOX.height).attr("rx", (node) => (node.kind === "group" ? 10 : 4));
    this.boxes.append("text").attr("dy", "0.35em").text((node) => shortened(node.label, Math.floor(node.width / 7)));
    this.boxes.append("title").text(spokenNode);
    this.showEdges();
    this.element.replaceChildren(svg.node());
    this.current = undefined;
    this.mark();
    const output = shown.find(({ kind }) => kind === "output");
    this.stop(output);
    this.element.scrollLeft = output.x - this.drawnWidth / 2;
  }

  grid(svg, rows, width) {
    const lines = svg.append("g").attr("class", "rows").attr("aria-hidden", "true").selectAll("g").data([...rows]).join("g");
    lines.append("line").attr("x1", GRAPH_MARGIN.left - 8).attr("x2", width).attr("y1", ([, { y }]) => y - 4).attr("y2", ([, { y }]) => y - 4);
    const names = lines.append("text").attr("y", ([, { y }]) => y + 14).text(([layer]) => (layer < 0 ? "tokens" : `layer ${layer}`));
    this.element.onscroll = () => names.attr("x", 2 + this.element.scrollLeft);
    names.attr("x", 2);
  }

  /** The edges of the largest influence, as wide as their share. */
  showEdges(count = this.edgesShown) {
    this.edgesShown = count;
    this.lines(this.base, this.graph.edges.slice(0, count));
  }

  lines(group, edges) {
    group.selectAll("path").data(edges.filter(({ source, target }) => !source.hidden && !target.hidden)).join("path")
      .attr("d", edgePath).attr("class", ({ signed }) => (signed < 0 ? "negative" : "positive"))
      .attr("stroke-width", ({ signed }) => 0.7 + 7 * Math.sqrt(Math.abs(signed) / this.largest));
  }

  /** Lights a node's edges and the strongest way through it, from a token to the output. */
  light(node) {
    this.element.classList.toggle("looking", Boolean(node));
    const edges = node ? new Set([...node.gets, ...node.gives, ...strongestPath(node, true), ...strongestPath(node, false)]) : new Set();
    this.lines(this.lit, [...edges]);
    const lit = new Set(node ? [node, ...[...edges].flatMap(({ source, target }) => [source, target])] : []);
    this.boxes.classed("lit", (each) => lit.has(each)).classed("current", (each) => each === node);
    if (node) this.looked(node);
  }

  /** By keyboard or by click: from here the arrow keys go on. */
  arrive(node) {
    if (this.current !== node && !this.walked?.nodes.includes(node)) this.walked = undefined;
    this.current = node;
    this.stop(node);
    this.light(node);
  }

  stop(node) {
    this.boxes.attr("tabindex", (each) => (each === node ? 0 : -1));
  }

  choose(node) {
    this.go(node);
    this.chosen(node);
  }

  /** Moves the focus to a node. */
  go(node) {
    this.element.querySelector(`#${node.id}`)?.focus({ preventScroll: false });
  }

  press(event) {
    const node = this.current;
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") this.chosen(node);
    else if (event.key === "p" || event.key === "P") this.pinned(node);
    else if (event.key === "ArrowDown") this.walk(node.gets.map(({ source }) => source));
    else if (event.key === "ArrowUp") this.walk(node.gives.map(({ target }) => target));
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") this.sideways(event.key === "ArrowRight" ? 1 : -1);
    else return;
    event.preventDefault();
  }

  walk(nodes) {
    const reached = nodes.filter(({ hidden }) => !hidden);
    if (!reached.length) return;
    this.walked = { nodes: reached, place: 0 };
    this.go(reached[0]);
  }

  /** The next strongest of what was walked to, or the next box of the row. */
  sideways(step) {
    const row = () => d3.sort(this.boxes.data().filter(({ layer }) => layer === this.current.layer), ({ x, y }) => 10000 * y + x);
    this.walked ??= { nodes: row(), place: row().indexOf(this.current) };
    this.walked.place = clamp(this.walked.place + step, this.walked.nodes.length);
    this.go(this.walked.nodes[this.walked.place]);
  }

  mark(pins = this.pins) {
    this.pins = pins;
    this.boxes.classed("pinned", (node) => pins.has(node.index));
  }
}

function edgePath({ source, target }) {
  const [from, to] = [source.y - BOX.height / 2, target.y + BOX.height / 2];
  if (to > from) return `M${source.x},${from}C${source.x},${from - 40} ${target.x},${to + 40} ${target.x},${to}`;
  const middle = (from + to) / 2;
  return `M${source.x},${from}C${source.x},${middle} ${target.x},${middle} ${target.x},${to}`;
}

function spokenNode(node) {
  const effect = number(node.effect, true);
  if (node.kind === "neuron") return `neuron ${node.name}, promotes ${node.label}${effect && `, effect ${effect}`}`;
  if (node.kind !== "group") return `${node.name} ${node.label}`;
  return `group ${node.name}${effect && `, effects of its ${node.members.length} neurons ${effect} together`}`;
}
