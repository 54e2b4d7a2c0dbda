// How tokens, names and numbers are written.

const SHOWN_CHARACTERS = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** A token's text, made visible: its outer spaces, and every character that draws nothing or moves others. */
function visible(text) {
  if (text === "") return "⟨empty⟩";
  const spaced = text.replace(/^ +|(?<=\s) +| +(?=\s)| +$/g, (spaces) => SHOWN_CHARACTERS[" "].repeat(spaces.length));
  return spaced.replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, shownCharacter);
}

function shownCharacter(character) {
  if (character in SHOWN_CHARACTERS) return SHOWN_CHARACTERS[character];
  const code = character.codePointAt(0);
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** Whether there is a number: protobuf writes "NaN", and comparisons null, where a layer has no heads. */
function isScore(value) {
  return Number.isFinite(value);
}

/** A score with four decimals, or with its exponent where it is too small for them. */
function number(value, signed = false) {
  if (value === undefined || value === null || value === "NaN") return "";
  const size = Math.abs(value);
  const text = size !== 0 && size < 0.001 ? size.toExponential(1) : isNaN(size) ? String(value) : size.toFixed(4);
  return (value < 0 ? "−" : signed ? "+" : "") + text;
}

function percent(value) {
  return value < 0.0001 ? value.toExponential(1) : `${(100 * value).toFixed(2)} %`;
}

function neuronName({ ffn, attention }) {
  if (attention) return `${attention.layer}.${attention.head}.${attention.index}`;
  return ffn.expert === undefined ? `${ffn.layer}.${ffn.index}` : `${ffn.layer}.e${ffn.expert}.${ffn.index}`;
}

function headName({ layer, head }) {
  return `${layer}.h${head}`;
}

const COMPONENTS = { COMPONENT_KIND_ATTENTION: "attention", COMPONENT_KIND_FFN: "FFN" };

function componentName({ kind, layer }) {
  return kind in COMPONENTS ? `${COMPONENTS[kind]} ${layer}` : "embedding";
}

/** The tokens a neuron raises here: a negative coefficient turns its projection around. */
function promoted({ projection, promoted_side: side }) {
  return (side === "PROMOTED_SIDE_BOTTOM" ? projection?.bottom : projection?.top) ?? [];
}

/** The tokens it lowers here: the other end. */
function suppressed({ projection, promoted_side: side }) {
  return (side === "PROMOTED_SIDE_BOTTOM" ? projection?.top : projection?.bottom) ?? [];
}

/** Whether a neuron is as strong in a quarter of the server's contexts, or more. */
function isCommon({ activity }) {
  return activity >= 0.25;
}

/** Rows of values as CSV (RFC 4180). */
function csv(rows) {
  return rows.map((row) => row.map(csvCell).join(",") + "\r\n").join("");
}

// Text is written as a JSON string: spaces and line ends stay exact, and no spreadsheet takes a token for a formula.
function csvCell(value) {
  if (value === undefined || value === null) return "";
  return typeof value === "number" ? String(value) : `"${String(value).replaceAll('"', '""')}"`;
}

function csvText(text) {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
