// Charts, by Observable Plot. Each is drawn again when its width or the colour scheme changes.

const SCHEME = matchMedia("(prefers-color-scheme: dark)");

/** A figure that holds a chart; `draw(width)` gives its SVG, or several. */
function chart(label, draw, leastWidth = 0) {
  const box = make("div", { class: "chart" });
  const redraw = () => {
    const width = Math.max(leastWidth, Math.floor(box.clientWidth));
    if (!width || !box.isConnected) return;
    const drawings = [draw(width)].flat();
    for (const drawing of drawings) {
      // Plot names its marks, which have no role that takes a name.
      drawing.querySelectorAll("[aria-label]").forEach((mark) => mark.removeAttribute("aria-label"));
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", label);
    }
    box.replaceChildren(...drawings);
  };
  let drawnWidth = 0;
  new ResizeObserver(() => {
    if (box.clientWidth !== drawnWidth) {
      drawnWidth = box.clientWidth;
      redraw();
    }
  }).observe(box);
  SCHEME.addEventListener("change", redraw);
  return box;
}

function plot(options) {
  const style = { background: "transparent", color: "var(--muted)", fontFamily: "inherit", fontSize: "12px", overflow: "visible" };
  return Plot.plot({ className: "plot", style, ...options });
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Blue below zero, the ground at zero, salmon above. */
function divergingColour(largest) {
  const [negative, middle, positive] = ["negative", "zero", "positive"].map(colour);
  const sides = [d3.interpolateRgb(middle, negative), d3.interpolateRgb(middle, positive)];
  return (value) => sides[value < 0 ? 0 : 1](Math.pow(Math.min(1, Math.abs(value) / (largest || 1)), 0.7));
}

const LAYER_MARGINS = { marginLeft: 46, marginRight: 12 };

/** Two bars a layer: attention to the left, FFN to the right. */
function layerChart(layers, width) {
  const bars = layers.attention.flatMap((score, layer) => [
    { layer, kind: "attention", from: layer - 0.4, to: layer, score },
    { layer, kind: "FFN", from: layer, to: layer + 0.4, score: layers.ffn[layer] },
  ]);
  return plot({
    width,
    height: 220,
    ...LAYER_MARGINS,
    x: { domain: [-0.5, layers.ffn.length - 0.5], label: null, ticks: layerTicks(layers.ffn.length, width), tickFormat: "d" },
    y: { label: "score (nats)", grid: true, nice: true },
    marks: [
      Plot.rectY(bars, {
        x1: "from", x2: "to", y1: 0, y2: "score", insetLeft: 0.5, insetRight: 0.5,
        fill: (bar) => `var(--${bar.kind.toLowerCase()})`,
      }),
      Plot.ruleY([0], { stroke: "var(--muted)" }),
      Plot.tip(bars, Plot.pointerX({ x: (bar) => (bar.from + bar.to) / 2, y: "score", title: (bar) => `${bar.kind} ${bar.layer}\n${number(bar.score, true)}` })),
    ],
  });
}

function layerTicks(count, width) {
  return d3.range(0, count, Math.ceil(count / (width / 28)));
}

/** One cell a head: layers to the right, heads downwards. */
function headChart(scores, width) {
  const [layers, heads] = scores.shape;
  const colourOf = divergingColour(d3.max(scores.values.filter(isScore), Math.abs));
  return plot({
    width,
    height: Math.max(90, Math.min(520, heads * 18)) + 46,
    ...LAYER_MARGINS,
    marginTop: 8,
    marginBottom: 38,
    padding: layers > 48 ? 0 : 0.06,
    x: { type: "band", domain: d3.range(layers), ticks: layerTicks(layers, width), label: "layer", tickSize: 0, labelArrow: "none" },
    y: { type: "band", domain: d3.range(heads), ticks: d3.range(0, heads, Math.ceil(heads / 16)), label: "head", tickSize: 0, labelArrow: "none" },
    marks: [
      Plot.cell(scores.values, { filter: isScore, x: (_, cell) => Math.floor(cell / heads), y: (_, cell) => cell % heads, fill: colourOf }),
    ],
  });
}

/** What a head takes from each source position, above how much it attends to it. */
function positionChart(head, tokens, width) {
  const count = head.position_scores.length;
  const labelled = count <= Math.min(36, width / 18);
  const x = labelled
    ? { domain: [-0.5, count - 0.5], ticks: d3.range(count), tickFormat: (position) => shortened(visible(tokens[position]?.text ?? "")), tickRotate: -45, label: null }
    : { domain: [-0.5, count - 0.5], tickFormat: "d", label: "source position", labelArrow: "none" };
  const scores = positionBars(head.position_scores, tokens, width, { x: { ...x, axis: null }, height: 130, label: "score (nats)", fill: (value) => (value < 0 ? "var(--negative)" : "var(--attention)"), marginBottom: 8 });
  const weights = positionBars(head.attention_weights, tokens, width, { x, height: labelled ? 175 : 140, label: "attention weight", fill: () => "var(--weight)", marginBottom: labelled ? 75 : 40 });
  return [scores, weights];
}

function positionBars(values, tokens, width, { x, height, label, fill, marginBottom }) {
  const bars = values.map((value, position) => ({ value, position, from: position - 0.45, to: position + 0.45 }));
  return plot({
    width, height, ...LAYER_MARGINS, marginTop: 24, marginBottom, x,
    y: { label, grid: true, ticks: 4, nice: true, labelArrow: "none" },
    marks: [
      Plot.rectY(bars, { x1: "from", x2: "to", y1: 0, y2: "value", fill: (bar) => fill(bar.value) }),
      Plot.ruleY([0], { stroke: "var(--muted)" }),
      Plot.tip(bars, Plot.pointerX({ x: "position", y: "value", title: (bar) => `${bar.position} ${visible(tokens[bar.position]?.text ?? "")}\n${number(bar.value)}` })),
    ],
  });
}

function shortened(text, length = 12) {
  const characters = Array.from(text);
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : text;
}

/** The most probable next tokens. */
function predictionChart(predictions, width) {
  const rows = predictions.map((prediction) => ({ ...prediction, name: `${prediction.rank} ${shortened(visible(prediction.token.text), 14)}` }));
  return plot({
    width,
    height: rows.length * 24 + 10,
    marginLeft: 130, marginRight: 62, marginTop: 0, marginBottom: 10,
    x: { axis: null, domain: [0, d3.max(rows, (row) => row.probability)] },
    y: { domain: rows.map((row) => row.name), label: null, tickSize: 0 },
    marks: [
      Plot.barX(rows, { x: "probability", y: "name", fill: (row) => (row.explained ? "var(--accent)" : "var(--weight)"), insetTop: 3, insetBottom: 3 }),
      Plot.text(rows, { x: "probability", y: "name", text: (row) => percent(row.probability), textAnchor: "start", dx: 5, fill: "var(--ink)" }),
    ],
  });
}

const FLOW_GAPS = [6, 84, 40, 6]; // Half the width of the text of each column's nodes, in pixels.

/** Nodes in columns and the links between them, as wide as their part of the largest in their column. */
function flowChart({ nodes, links, columns }, width) {
  const rows = d3.max(nodes, (node) => node.row) + 1;
  const margins = { marginLeft: 150, marginRight: 110, marginTop: 34, marginBottom: 10 };
  const gap = (node) => (FLOW_GAPS[node.column] * (columns.length - 1)) / (width - 260);
  const largest = d3.rollup(links, (group) => d3.max(group, (link) => Math.abs(link.score ?? 0)), (link) => link.source.column);
  const thickness = (link) => (link.score === undefined ? 1.5 : 1 + (9 * Math.abs(link.score)) / (largest.get(link.source.column) || 1));
  const anchors = ["end", ...columns.slice(2).map(() => "middle"), "start"];
  return plot({
    width,
    height: rows * 24 + 44,
    ...margins,
    x: { axis: null, domain: [0, columns.length - 1] },
    y: { axis: null, domain: [-0.5, rows - 0.5], reverse: true },
    marks: [
      Plot.link(links, {
        x1: ({ source }) => source.column + gap(source), y1: ({ source }) => source.row,
        x2: ({ target }) => target.column - gap(target), y2: ({ target }) => target.row,
        curve: "bump-x", stroke: "colour", strokeOpacity: 0.6, strokeWidth: thickness, strokeLinecap: "butt", fill: "none",
      }),
      ...anchors.flatMap((anchor, column) => [
        flowText(nodes.filter((node) => node.column === column), anchor),
        Plot.text([column], { x: [column], frameAnchor: "top", dy: -28, text: [columns[column]], fill: "var(--muted)", textAnchor: anchor }),
      ]),
    ],
  });
}

function flowText(nodes, textAnchor) {
  const marks = [true, false].map((group) => [nodes.filter((node) => Boolean(node.group) === group), group ? 600 : 400]);
  return marks.map(([some, fontWeight]) => Plot.text(some, { x: "column", y: "row", text: "name", textAnchor, fill: "var(--ink)", fontWeight }));
}
