// Where the nodes of a graph are drawn: a column a position, a row a layer that has any; tokens below, the output above.

const BOX = { width: 86, height: 21, across: 6, down: 5, row: 18 };
const GRAPH_MARGIN = { left: 64, right: 16, top: 14, bottom: 18 };
const COLUMN_GAP = 12;
const TOKEN_WIDTH = 50; // Where a position has no neurons.

/** Sets x and y (the middle) of every node; gives the size of the drawing, its rows and its columns. */
function placeNodes({ nodes }, width) {
  const shown = nodes.filter((node) => node.kind !== "token" || node.gives.length);
  nodes.forEach((node) => (node.hidden = true));
  shown.forEach((node) => (node.hidden = false));
  const inner = shown.filter(({ kind }) => kind !== "output");
  const cells = d3.group(inner, columnOf, ({ layer }) => layer);
  for (const node of shown) node.width = node.kind === "token" && cells.get(columnOf(node)).size === 1 ? TOKEN_WIDTH : BOX.width;
  const columns = placeColumns(cells, width);
  const rows = placeRows(cells, columns);
  for (const [column, layers] of cells) for (const [layer, members] of layers) placeCell(members, columns.get(column), rows.get(layer));
  const total = Math.max(width, d3.max(columns.values(), ({ x, width: wide }) => x + wide) + GRAPH_MARGIN.right);
  const height = d3.max(rows.values(), ({ y, height: high }) => y + high) + GRAPH_MARGIN.bottom;
  const output = shown.find(({ kind }) => kind === "output");
  Object.assign(output, { x: outputPlace(output, columns, total), y: GRAPH_MARGIN.top + BOX.height / 2 });
  return { width: total, height, rows, columns, shown };
}

/** Biases have a column of their own, left of the first position. */
function columnOf({ position }) {
  return position ?? -1;
}

function outputPlace({ gets }, columns, total) {
  const last = d3.max(columns.keys());
  return gets.length ? columns.get(last).x + columns.get(last).width / 2 : total / 2;
}

/** The width of one box of a column, with what is beside it. */
function stepOf(layers) {
  return BOX.across + d3.max([...layers.values()].flat(), (node) => node.width);
}

/** How many boxes stand abreast in each column: as many as there is room for, where they save most height. */
function abreastOf(cells, room) {
  const abreast = new Map([...cells.keys()].map((key) => [key, 1]));
  const used = () => d3.sum(abreast, ([key, count]) => count * stepOf(cells.get(key))) + abreast.size * COLUMN_GAP;
  const saved = (key) => linesOf(cells, abreast) - linesOf(cells, new Map(abreast).set(key, abreast.get(key) + 1));
  while (used() + BOX.width + BOX.across <= room) {
    const widest = d3.greatest(cells.keys(), saved);
    if (!saved(widest)) break;
    abreast.set(widest, abreast.get(widest) + 1);
  }
  return abreast;
}

/** The lines of boxes that all layers take together. */
function linesOf(cells, abreast) {
  const lines = new Map();
  for (const [column, layers] of cells)
    for (const [layer, members] of layers) lines.set(layer, Math.max(lines.get(layer) ?? 0, Math.ceil(members.length / abreast.get(column))));
  return d3.sum(lines.values());
}

function placeColumns(cells, width) {
  const keys = d3.sort(cells.keys());
  const room = width - GRAPH_MARGIN.left - GRAPH_MARGIN.right;
  const abreast = abreastOf(cells, room);
  const widths = keys.map((key) => abreast.get(key) * stepOf(cells.get(key)));
  const spare = Math.max(0, room - d3.sum(widths) - keys.length * COLUMN_GAP) / keys.length;
  let x = GRAPH_MARGIN.left;
  return new Map(keys.map((key, number) => {
    const column = { x, width: widths[number] + spare, abreast: abreast.get(key) };
    x += column.width + COLUMN_GAP;
    return [key, column];
  }));
}

function placeRows(cells, columns) {
  const layers = d3.sort(new Set([...cells.values()].flatMap((column) => [...column.keys()])), (layer) => -layer);
  let y = GRAPH_MARGIN.top + BOX.height + BOX.row;
  return new Map(layers.map((layer) => {
    const lines = d3.max([...cells], ([column, each]) => Math.ceil((each.get(layer)?.length ?? 0) / columns.get(column).abreast));
    const row = { y, height: lines * (BOX.height + BOX.down) };
    y += row.height + BOX.row;
    return [layer, row];
  }));
}

function placeCell(members, column, row) {
  const strongest = d3.sort(members, (node) => -strengthOf(node));
  const across = BOX.width + BOX.across;
  strongest.forEach((node, number) => {
    const line = Math.floor(number / column.abreast);
    const abreastHere = Math.min(column.abreast, strongest.length - line * column.abreast);
    node.x = column.x + column.width / 2 + ((number % column.abreast) - (abreastHere - 1) / 2) * across;
    node.y = row.y + line * (BOX.height + BOX.down) + BOX.height / 2;
  });
}
