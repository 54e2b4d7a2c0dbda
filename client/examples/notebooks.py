"""The paper's published notebooks, cell by cell, through the service: a script, and a notebook in the percent format.

neuron-attribution serve --model demo
python client/examples/notebooks.py

`NEURON_ATTRIBUTION_ADDRESS` names another server, `IMAGES` another folder for the pictures.
"""

# %% [markdown]
# The authors' repository, [zepingyu0512/neuron-attribution](https://github.com/zepingyu0512/neuron-attribution), holds
# two notebooks of the same twenty cells, for GPT2-large and Llama-7B. Their users first overwrite files inside the
# installed transformers; then one sentence at a time runs on one CUDA device. Here each cell is a call:
#
# | cell | what it does | here |
# |---|---|---|
# | 0–2 | loads the model | `neuron-attribution serve`, `Client(…)` |
# | 3 | the ten most probable next tokens | `explanation.predictions` |
# | 4 | the explained token | `explanation.target`; `target=` explains another one |
# | 5 | every layer's log probability increase | `explanation.layers`, `plots.layers` |
# | 6 | every head's | `explanation.head_scores`, `.heads`, `plots.heads` |
# | 7 | one head, position by position | `heads[0]` with `position_projection_top_k=20`, `plots.head_positions` |
# | 8 | attention patterns of all heads | `attention_patterns`, with `parts=["attention-patterns"]` |
# | 9 | FFN value neurons | `explanation.ffn_value_neurons` |
# | 10 | their layers | `top_k=300`, `plots.neuron_layers` |
# | 11 | attention value neurons | `explanation.attention_value_neurons` |
# | 12 | their layers | `top_k=300`, `plots.neuron_layers` |
# | 13 | layers that activate the FFN value neurons | `explanation.ffn_query_layers`, `plots.query_layers` |
# | 14 | layers that activate the attention value neurons | `explanation.attention_query_layers` |
# | 15–16 | query FFN neurons | `explanation.query_ffn_neurons` |
# | 17 | their layers, those that are value neurons apart | `plots.neuron_layers` of two lists |
# | 18 | query FFN neurons of one attention neuron | `query_from=[…]` |
# | 19 | a query FFN neuron through a head | `project_neuron(…, through=head)` |
#
# The notebooks' numbers are of other models. What is printed here is the demo model's, SmolLM2-135M-Instruct, whose
# prompt is one that it knows.
#
# The notebooks' own settings differ from these calls in places. Llama's cells 13 and 14 use 30 sources and the subvalue
# as the key (`query_sources=30, subkey="subvalue"`). GPT-2's cell 19 adds the biases of `ln_1` and `c_attn`, which a
# projection here leaves out. A query FFN neuron that no source reads scores 0 and stands above negative ones; their
# dictionary omits it. They round scores of heads to four digits, and nothing else. On models with grouped-query
# attention their code fails: with an IndexError in cells 14 and 15, with a wrong row in cell 18.

# %% Setup
import os
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from neuron_attribution import Client, NeuronScore, ProjectedToken, QuerySource, plots

PROMPT = "The capital of France is"
IMAGES = Path(os.environ.get("IMAGES", "."))


def show(axes: pyplot.Axes, name: str) -> None:
    """Save a picture."""
    axes.figure.savefig(IMAGES / f"{name}.svg")


def tokens(projected: tuple[ProjectedToken, ...]) -> str:
    """The tokens of a projection."""
    return " ".join(repr(item.token.text) for item in projected)


def line(score: NeuronScore) -> str:
    """A neuron as the notebooks print it: its score, its first and its last tokens."""
    position = "" if score.position is None else f"_{score.position}"
    ends = tokens(score.projection.top), tokens(score.projection.bottom)
    return f"{score.neuron}{position} {score.score:.4f}  {'  /  '.join(ends)}"


# %% Cells 0–2: the model
client = Client(os.environ.get("NEURON_ATTRIBUTION_ADDRESS", "localhost:50051"))
model = client.get_model()
print(model)

# %% Cell 3: the ten most probable next tokens
result = client.attribute(PROMPT, head_top_k=20, position_projection_top_k=20)
explanation = result.explanations[0]
for prediction in explanation.predictions:
    print(f"{prediction.token.text!r} {prediction.probability:.4f}")

# %% Cell 4: the explained token
print(explanation.target.token.id, repr(explanation.target.token.text))

# %% Cell 5: layers
layers = explanation.layers
print(f"attention {layers.attention.sum():.4f}, FFN {layers.ffn.sum():.4f}")
for kind, scores in (("attention", layers.attention), ("FFN", layers.ffn)):
    strongest = np.argsort(-scores)[:10]
    print(kind, ", ".join(f"{layer} {scores[layer]:.4f}" for layer in strongest))
show(plots.layers(explanation), "layers")

# %% Cell 6: heads
print(", ".join(f"{head.head} {head.score:.4f}" for head in explanation.heads))
show(plots.heads(explanation), "heads")

# %% Cell 7: one head, position by position
# "Key" is the layer's input less the embedding and all FFN outputs, as in the notebooks.
head = explanation.heads[0]
print(f"head {head.head}")
for item in sorted(head.positions, key=lambda item: -head.position_scores[item.position])[:3]:
    score, weight = head.position_scores[item.position], head.attention_weights[item.position]
    print(f"{item.position} {result.tokens[item.position].text!r} {score:.4f}, attention weight {weight:.4f}")
    print("  layer input ", tokens(item.layer_input.top[:8]))
    print("  key         ", tokens(item.key.top[:8]))
    print("  value output", tokens(item.value_output.top[:8]))
show(plots.head_positions(head, result.tokens), "head-positions")

# %% [markdown]
# The notebooks' cell 8 is bertviz's interactive view of every head's whole attention pattern. The service answers with
# the row of the explained position alone: what the last token attends to. The rows above it come from explaining every
# token of the prompt, as below; with them the pattern is whole. What differs: no interactive page, two calls, and the
# heads come ordered by score, not by number.

# %% Cell 8: attention patterns of all heads
ids = [token.id for token in result.tokens]
above = client.attribute(ids[:1], completion=ids[1:], parts=["attention-patterns"]).explanations
last = client.attribute(ids, parts=["attention-patterns"]).explanations
patterns = np.zeros((model.sizes.layers, model.sizes.heads, len(ids), len(ids)))
for row in (*above, *last):
    patterns[:, :, row.position, : row.position + 1] = row.attention_patterns
print(patterns.shape, f"every row adds up to {patterns.sum(-1).min():.4f} at least")
print(patterns[head.head.layer, head.head.head].round(3))

# %% Cell 9: FFN value neurons
for score in explanation.ffn_value_neurons.neurons:
    print(line(score))

# %% Cell 10: the layers of 300 of them
many = client.attribute(PROMPT, top_k=300, query_sources=100, projection_top_k=0).explanations[0]
count = model.sizes.layers
axes = plots.neuron_layers({"FFN value": many.ffn_value_neurons}, layer_count=count)
show(axes, "ffn-value-layers")

# %% Cell 11: attention value neurons, each at a position
for score in explanation.attention_value_neurons.neurons:
    print(line(score))

# %% Cell 12: the layers of 300 of them
axes = plots.neuron_layers({"attention value": many.attention_value_neurons}, layer_count=count)
show(axes, "attention-value-layers")

# %% Cell 13: the layers that activate the 100 strongest FFN value neurons
# The published Llama notebook takes the subvalue for the key, against the paper; `subkey="subvalue"` does the same.
print(", ".join(f"{item.kind.value} {item.layer} {item.score:.4f}" for item in many.ffn_query_layers.layers[:10]))
show(plots.query_layers(many.ffn_query_layers), "ffn-query-layers")

# %% Cell 14: the layers that activate the 100 strongest attention value neurons, and those neurons' mean layer
print(", ".join(f"{item.kind.value} {item.layer} {item.score:.4f}" for item in many.attention_query_layers.layers[:10]))
print(f"mean layer {np.mean([score.neuron.layer for score in many.attention_value_neurons.neurons[:100]]):.2f}")
show(plots.query_layers(many.attention_query_layers), "attention-query-layers")

# %% Cells 15–16: query FFN neurons of the 30 strongest attention value neurons
for score in explanation.query_ffn_neurons.neurons:
    print(line(score))

# %% Cell 17: the layers of 300 query FFN neurons, those that are also value neurons apart
values = {score.neuron for score in many.ffn_value_neurons.neurons}
queries = client.attribute(PROMPT, top_k=300, projection_top_k=0).explanations[0].query_ffn_neurons.neurons
apart = {
    "query only": [score for score in queries if score.neuron not in values],
    "query and value": [score for score in queries if score.neuron in values],
}
print({name: len(scores) for name, scores in apart.items()})
show(plots.neuron_layers(apart, layer_count=count), "query-layers-apart")

# %% Cell 18: query FFN neurons of one attention neuron, here the strongest
# The published cell reuses another cell's score: its ranking is right, its scale is not. Any other is traced in its
# place: query_from=["23.4.38@3"], or as the notebooks write it, "23_4_38_3".
strongest = explanation.attention_value_neurons.neurons[0].neuron
source = QuerySource(strongest, explanation.attention_value_neurons.neurons[0].position)
traced = client.attribute(PROMPT, parts=["query-ffn-neurons"], query_from=[source]).explanations[0].query_ffn_neurons
print(f"of {source}:", ", ".join(f"{score.neuron} {score.score:.4f}" for score in traced.neurons))

# %% Cell 19: a query FFN neuron by itself, and through a head
neuron = traced.neurons[0].neuron
through = f"{strongest.layer}.h{strongest.head}"
for name, head_name in (("by itself", None), (f"through {through}", through)):
    projection = client.project_neuron(neuron, through=head_name).projections[0].projection
    print(f"{neuron} {name}: {tokens(projection.top)}  /  {tokens(projection.bottom)}")

# %% [markdown]
# Every ranking is a data frame as well: `explanation.ffn_value_neurons.to_dataframe()`, or
# `neuron-attribution attribute "The capital of France is" --csv`.
