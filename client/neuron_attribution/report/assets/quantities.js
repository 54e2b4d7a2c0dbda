// What the explained tokens can be shaded by: how probable they were, and what a layer, head or neuron did for each.

/** One number for each explained token, those of another answer behind them, and what they are together. */
function quantity(name, values, together, key = name) {
  const read = (value) => `${name} ${number(value, true)}`;
  const scores = values.filter(isScore);
  return { key, name, values, together: together ?? d3.sum(scores), read, largest: d3.max(scores, Math.abs) ?? 0 };
}

/** The explained tokens of a result, those of another answer behind them. */
function explainedTokens({ aggregate, explanations }) {
  return aggregate ? [...aggregate.targets, ...aggregate.contrast_targets] : explanations.map(({ target }) => target);
}

function probabilities(result) {
  const values = explainedTokens(result).map(({ probability }) => probability);
  return { ...quantity("probability", values), read: (value) => `probability ${percent(value)}`, largest: 1 };
}

/** A layer's score at each token, where the tokens have explanations of their own. */
function layerQuantity(kind, layer, { aggregate, explanations }) {
  const values = explanations.map(({ layers }) => layers[kind][layer]);
  return quantity(`${kind === "ffn" ? "FFN" : kind} layer ${layer}`, values, aggregate?.layers?.[kind][layer]);
}

/** A head's score at each token: the sums have those of their strongest heads, the tokens' explanations all. */
function headQuantity(head, { aggregate, explanations }) {
  const known = aggregate && [...aggregate.heads, ...aggregate.heads_decreasing].find((other) => headName(other.head) === headName(head));
  const values = known?.token_scores.length ? known.token_scores : explanations.map(({ head_scores: all }) => (all ? headScoreOf(head, all) : NaN));
  const together = known?.score ?? (aggregate?.head_scores ? headScoreOf(head, aggregate.head_scores) : undefined);
  return values.some(isScore) ? quantity(`head ${headName(head)}`, values, together) : undefined;
}

/** A neuron's score at each token, as the sums have it. */
function neuronQuantity({ neuron, position, score, token_scores: scores }) {
  const name = `neuron ${neuronName(neuron)}${position === undefined ? "" : ` at position ${position}`}`;
  return scores?.length ? quantity(name, scores, score) : undefined;
}

/** The quantity of a row of any ranking: the sums may know the neuron that a single token's ranking names. */
function quantityOfNeuron(row, { aggregate }) {
  const same = (other) => neuronName(other.neuron) === neuronName(row.neuron) && other.position === row.position;
  return neuronQuantity(row) ?? (aggregate && rankedNeurons(aggregate).filter(same).map(neuronQuantity)[0]);
}

/** The neurons of the sums that have scores by token, each once, in the order of their rankings. */
function rankedNeurons(aggregate) {
  const all = [...VALUE_RANKINGS.flatMap((name) => aggregate[name]?.neurons ?? []), ...aggregate.neurons];
  return [...d3.rollup(all.filter(neuronQuantity), ([first]) => first, (row) => neuronQuantity(row).key).values()];
}

/** What a reader can choose from, by kind. */
function quantityGroups(result) {
  const { aggregate, explanations } = result;
  const layers = explanations.length && explanations.every((each) => each.layers) ? d3.range(explanations[0].layers.ffn.length) : [];
  const heads = aggregate ? [...aggregate.heads, ...aggregate.heads_decreasing] : [];
  const groups = {
    "Attention layers": layers.map((layer) => layerQuantity("attention", layer, result)),
    "FFN layers": layers.map((layer) => layerQuantity("ffn", layer, result)),
    Heads: heads.map(({ head }) => headQuantity(head, result)).filter(Boolean),
    Neurons: aggregate ? rankedNeurons(aggregate).map(neuronQuantity) : [],
  };
  return Object.entries(groups).filter(([, quantities]) => quantities.length);
}

/** How strongly a value is shaded, and which way. */
function shadeOf(value, largest) {
  const part = isScore(value) && largest ? Math.min(1, Math.abs(value) / largest) : 0;
  return { side: value < 0 ? "negative" : "positive", style: { "--shade": `${Math.round(60 * part)}%` } };
}

/** The key of a shading. */
function ramp({ key, largest }) {
  const probable = key === "probability";
  const ends = probable ? ["0", "1"] : [`−${number(largest)}`, `+${number(largest)}`];
  return make("span", { class: "ramp" }, ends[0], make("span", { class: `ramp-bar ${probable ? "rising" : ""}` }), ends[1]);
}
