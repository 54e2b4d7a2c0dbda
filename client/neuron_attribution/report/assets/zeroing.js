// What becomes of the prediction without a neuron: a live page asks the server for it.

function zeroing(neuron, view) {
  return zeroingBox(neuronName(neuron), () => view.zero(neuron), view);
}

/** A button that asks what becomes of the prediction; `call()` gives the answer, and may say `where` it was zeroed. */
function zeroingBox(name, call, view) {
  const outcome = make("div", { role: "status" });
  const button = make("button", { type: "button", onclick: () => ask() }, `Zero ${name}`);
  const ask = async () => {
    button.disabled = true;
    outcome.replaceChildren(note("Asking …"));
    const shown = await call().then((answer) => beforeAndAfter(name, answer, view), (error) => [note(error.message)]);
    outcome.replaceChildren(...shown);
    button.disabled = false;
  };
  return make("div", { class: "zeroing" }, button, outcome);
}

function beforeAndAfter(name, { where, before, results: [{ after, kl_divergence: divergence }] }, view) {
  const change = `: ${percent(before.target.probability)} → ${percent(after.target.probability)}, rank ${before.target.rank} → ${after.target.rank}; KL ${number(divergence)} nats`;
  const rows = before.predictions.map((prediction, place) => ({ place: place + 1, before: prediction, after: after.predictions[place] }));
  const cells = (side) => [
    { title: side, cell: (row) => tokenChip(row[side].token), csv: (row) => csvText(row[side].token.text) },
    { title: `probability ${side}`, numeric: true, cell: (row) => percent(row[side].probability), csv: (row) => row[side].probability },
  ];
  const table = dataTable({
    file: view.file(`without-${name}`),
    caption: `The most probable tokens with and without ${name}`,
    rows,
    columns: [{ title: "place", cell: (row) => String(row.place), csv: (row) => row.place }, ...cells("before"), ...cells("after")],
  });
  return [make("p", {}, where ? `${where}; ` : "", tokenChip(before.target.token), change), table];
}
