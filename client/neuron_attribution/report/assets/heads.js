// Every head as a cell of a map; the returned ones with their source positions.

function headsSection(view) {
  const { explanation } = view;
  const heads = [...explanation.heads, ...explanation.heads_decreasing];
  if (!explanation.head_scores && !heads.length) return undefined;
  const detail = make("div", { class: "detail", id: "head-detail" });
  const selection = new HeadSelection(view, heads, detail);
  const parts = [];
  if (explanation.head_scores) parts.push(headMap(explanation.head_scores, selection));
  parts.push(make("div", { class: "columns" }, headList(heads, selection, view), detail));
  if (explanation.head_scores) parts.push(folded("All heads as a table", () => headTable(explanation.head_scores, view)));
  if (heads.length) selection.select(heads[0].head);
  selection.listeners.push((head) => view.shade(headQuantity(head, view.result)));
  return section("heads", "Heads", ...parts);
}

/** Which head is shown, and who wants to know. */
class HeadSelection {
  constructor(view, heads, detail) {
    Object.assign(this, { view, detail, listeners: [] });
    this.known = new Map(heads.map((head) => [headName(head.head), head]));
  }

  async select(head) {
    this.head = head;
    this.listeners.forEach((listener) => listener(head));
    const name = headName(head);
    const known = this.known.get(name);
    if (known) return this.show(headDetail(known, this.view));
    this.show(make("h3", {}, `Head ${name}`), unknownHead(head, this.view));
    if (!this.view.fetchHead) return undefined;
    const fetched = await this.view.fetchHead(head).catch((error) => error);
    if (headName(this.head) !== name) return undefined;
    if (fetched instanceof Error) return this.show(make("h3", {}, `Head ${name}`), note(fetched.message));
    this.known.set(name, fetched);
    return this.show(headDetail(fetched, this.view));
  }

  show(...children) {
    this.detail.replaceChildren(...children.flat());
  }
}

function headScoreOf({ layer, head }, scores) {
  return scores.values[layer * scores.shape[1] + head];
}

function unknownHead(head, view) {
  const score = number(headScoreOf(head, view.explanation.head_scores), true);
  if (view.fetchHead) return note(`Score ${score}. Fetching its positions …`);
  const command = make("code", {}, "--head-top-k N");
  return note(`Score ${score}. Its positions are not in this report, which holds those of the strongest heads only: ask for more with `, command, ".");
}

/** The heat map: the mouse or the arrow keys choose a head. */
function headMap(scores, selection) {
  const [layers, heads] = scores.shape;
  const spoken = announcer();
  let cursor = { layer: 0, head: 0 };
  let scale;
  const drawing = chart("Heat map of head scores", (width) => {
    const svg = headChart(scores, width);
    scale = { x: svg.scale("x"), y: svg.scale("y") };
    for (const name of ["cursor", "chosen"]) d3.select(svg).append("rect").attr("class", name);
    requestAnimationFrame(mark);
    return svg;
  });
  const mark = () => {
    frame(drawing, "cursor", cursor, scale);
    frame(drawing, "chosen", selection.head, scale);
  };
  const tip = make("p", { class: "reading", "aria-hidden": "true" });
  const isThere = (head) => isScore(headScoreOf(head, scores));
  const read = (head) => (isThere(head) ? `head ${headName(head)} score ${number(headScoreOf(head, scores), true)}` : `layer ${head.layer} has no heads`);
  const move = (head, say) => {
    cursor = head;
    tip.textContent = read(head);
    if (say) spoken.textContent = read(head) + (selection.known.has(headName(head)) || !isThere(head) ? "" : ", not among the returned heads");
    mark();
  };
  const keys = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const press = (event) => {
    if (event.key === "Enter" || event.key === " ") {
      if (isThere(cursor)) selection.select(cursor);
    } else if (event.key in keys) {
      const [right, down] = keys[event.key];
      move({ layer: clamp(cursor.layer + right, layers), head: clamp(cursor.head + down, heads) }, true);
    } else return;
    event.preventDefault();
  };
  const pointed = (event) => {
    const cell = event.target.closest?.("g > rect");
    return cell ? { layer: Math.floor(cell.__data__ / heads), head: cell.__data__ % heads } : undefined;
  };
  selection.listeners.push((head) => move(head, false));
  const box = make(
    "div",
    {
      class: "head-map", tabindex: "0", role: "application", "aria-label": "Heat map of head scores. Arrow keys move, Enter shows a head's positions.",
      onkeydown: press,
      onpointermove: (event) => pointed(event) && move(pointed(event), false),
      onclick: (event) => pointed(event) && selection.select(pointed(event)),
    },
    drawing,
  );
  return make("figure", {}, box, make("figcaption", {}, headKey(scores), tip), spoken);
}

function clamp(value, count) {
  return Math.max(0, Math.min(count - 1, value));
}

function frame(drawing, name, head, scale) {
  const rect = drawing.querySelector(`rect.${name}`);
  if (!rect || !head) return;
  const values = { x: scale.x.apply(head.layer), y: scale.y.apply(head.head), width: scale.x.bandwidth, height: scale.y.bandwidth };
  Object.entries(values).forEach(([key, value]) => rect.setAttribute(key, value));
}

function headKey(scores) {
  const largest = d3.max(scores.values.filter(isScore), Math.abs);
  return make("span", { class: "ramp" }, `−${number(largest)}`, make("span", { class: "ramp-bar" }), `+${number(largest)}`);
}

function strongestPosition(head) {
  const sign = head.score < 0 ? -1 : 1;
  return d3.maxIndex(head.position_scores, (score) => sign * score);
}

function headList(heads, selection, view) {
  const { tokens } = view.result;
  const largest = d3.max(heads, (head) => Math.abs(head.score));
  const buttons = heads.map(({ head }) => make("button", { type: "button", class: "choose", "aria-controls": "head-detail", onclick: () => selection.select(head) }, headName(head)));
  selection.listeners.push((chosen) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === headName(chosen)))));
  const strongest = (head) => [strongestPosition(head)].filter((position) => position >= 0);
  return dataTable({
    file: view.file("strongest-heads"),
    caption: "Strongest heads",
    rows: heads,
    columns: [
      { title: "head", cell: (row) => buttons[heads.indexOf(row)] },
      { title: "layer", csv: (row) => row.head.layer },
      { title: "head", csv: (row) => row.head.head },
      { title: "score", numeric: true, cell: (row) => barredNumber(row.score, largest), csv: (row) => row.score },
      { title: "reads most from", cell: (row) => strongest(row).flatMap((position) => place(position, tokens)), csv: (row) => strongest(row)[0] },
      { title: "weight there", numeric: true, cell: (row) => number(row.attention_weights[strongest(row)[0]]), csv: (row) => row.attention_weights[strongest(row)[0]] },
    ],
  });
}

function headDetail(head, view) {
  const { tokens } = view.result;
  const name = headName(head.head);
  const drawing = chart(`Position scores and attention weights of head ${name}; the table beneath holds the numbers`, (width) => positionChart(head, tokens, width));
  const parts = [make("h3", {}, `Head ${name}`), note(`Score ${number(head.score, true)}. What it takes from each source position, and how much it attends there.`), drawing];
  parts.push(folded(`Positions of head ${name} as a table`, () => positionTable(head, view)));
  if (head.positions.length) parts.push(folded("What it reads there", () => readingTable(head, view)));
  return parts;
}

function positionTable(head, view) {
  const { tokens } = view.result;
  return dataTable({
    file: view.file(`head-${headName(head.head)}`),
    caption: `Source positions of head ${headName(head.head)}`,
    rows: head.position_scores.map((score, position) => ({ score, position, weight: head.attention_weights[position] })),
    columns: [
      { title: "position", cell: (row) => place(row.position, tokens), csv: (row) => row.position },
      { title: "token", csv: (row) => csvText(tokens[row.position]?.text ?? "") },
      { title: "score", numeric: true, cell: (row) => number(row.score), csv: (row) => row.score },
      { title: "attention weight", numeric: true, cell: (row) => number(row.weight), csv: (row) => row.weight },
    ],
  });
}

const READINGS = { layer_input: "layer input", key: "its attention-only part", value_output: "what the head adds" };

function readingTable(head, view) {
  const rows = head.positions.flatMap((item) => Object.keys(READINGS).map((vector) => ({ position: item.position, vector, projection: item[vector] })));
  const texts = (projected) => csvText(projected.map(({ token }) => token.text).join(" | "));
  return dataTable({
    file: view.file(`head-${headName(head.head)}-readings`),
    caption: `Projections at the strongest positions of head ${headName(head.head)}`,
    rows,
    columns: [
      { title: "position", cell: (row) => place(row.position, view.result.tokens), csv: (row) => row.position },
      { title: "vector", cell: (row) => READINGS[row.vector], csv: (row) => row.vector },
      { title: "top tokens", cell: (row) => chips(row.projection?.top ?? []), csv: (row) => texts(row.projection?.top ?? []) },
    ],
  });
}

function headTable(scores, view) {
  const heads = scores.shape[1];
  const rows = scores.values.map((score, cell) => ({ layer: Math.floor(cell / heads), head: cell % heads, score }));
  return dataTable({
    file: view.file("heads"),
    caption: "Scores of all heads, highest first",
    rows: d3.sort(rows.filter((row) => isScore(row.score)), (row) => -row.score),
    columns: [
      { title: "head", cell: headName },
      { title: "layer", csv: (row) => row.layer },
      { title: "head", csv: (row) => row.head },
      { title: "score", numeric: true, cell: (row) => number(row.score), csv: (row) => row.score },
    ],
  });
}
