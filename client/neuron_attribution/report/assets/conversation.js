// A prompt of messages, drawn as a conversation: who says what, with the tokens of the chat template folded away.

/** The tokens' elements as messages. `origins` say which message each belongs to, `taken` what is folded with it. */
function conversation(chips, origins, taken) {
  const largest = d3.max(taken, Math.abs);
  const positions = d3.range(chips.length);
  const turns = d3.groups(positions, (position) => turnOf(origins[position])).map(([, each]) => turn(each, chips, origins, taken, largest));
  const folds = turns.flatMap((element) => [...element.querySelectorAll(".folded-tokens")]);
  const unfold = ({ target }) => folds.forEach((button) => button.setAttribute("aria-expanded", String(target.checked)));
  const count = origins.filter(({ template }) => template).length;
  const box = make("input", { type: "checkbox", onchange: unfold });
  const label = make("label", { class: "switch" }, box, ` Show the ${count} tokens that the chat template wrote`);
  return make("div", {}, count ? label : [], turns);
}

function turnOf({ message, role }) {
  return `${message} ${role}`;
}

function turn(positions, chips, origins, taken, largest) {
  const runs = [];
  for (const position of positions) {
    const { template } = origins[position];
    if (runs.at(-1)?.template === template) runs.at(-1).positions.push(position);
    else runs.push({ template, positions: [position] });
  }
  const texts = runs.map((run) => {
    const tokens = run.positions.map((position) => chips[position]);
    return run.template ? [foldOf(run.positions, taken, largest), make("span", { class: "unfolded" }, tokens)] : tokens;
  });
  const { role } = origins[positions[0]];
  const speaker = make("span", { class: "speaker" }, role || "before the first message");
  return make("div", { class: "turn", "data-role": role }, speaker, make("p", { class: "prompt" }, texts));
}

/** A button in place of the template's tokens, shaded by what all of them have. */
function foldOf(positions, taken, largest) {
  const together = d3.sum(positions, (position) => taken[position] ?? 0);
  const { side, style } = shadeOf(together, largest);
  const what = `${positions.length} token${positions.length === 1 ? "" : "s"} of the chat template`;
  const toggle = () => button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
  const spoken = { "aria-expanded": "false", "aria-label": what, title: `${what}, taken ${number(together, true)} together` };
  const button = make("button", { type: "button", class: `folded-tokens token ${side}`, style, onclick: toggle, ...spoken }, `⋯${positions.length}`);
  return button;
}
