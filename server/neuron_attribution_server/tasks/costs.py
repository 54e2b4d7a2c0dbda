"""What tasks put into a batch, and the memory that a batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_attribution_server.tasks.tasks import Cost, Task


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What a batch takes beside the weights, in bytes, predicted from above; `available` is what batches may take."""

    available: int
    fixed: int = 0
    per_token: int = 0
    """Of each padded token of the batch: the forward pass."""
    per_stream_token: int = 0
    """The same where the residual stream is read at any position: what it is at each layer, and what is added to it."""
    per_source_token: int = 0
    """The same where source positions are read one by one: their value vectors."""
    per_sequence: int = 0
    """Of each sequence: the states of recurrent mixers, and what they compute beyond its end."""
    per_row: int = 0
    """Of each explained token: the base states' log probabilities, up to `rows_at_once` of them."""
    per_row_token: int = 0
    """Of each explained token and each padded position it may look at, where these are read: attention weights."""
    per_head_position: int = 0
    """Of each padded position of a head that is detailed: its score, and what that is computed from."""
    per_held_position: int = 0
    """Of each of those whose vectors are held at once, which are `positions_at_once` or those of one head."""
    positions_at_once: int = 2**62
    per_scored_head: int = 0
    """Of each head that is scored: what it writes, folded, scaled, and beside its slope."""
    rows_at_once: int = 1
    per_explained: int = 0
    """Of each explained token: the coefficients of every neuron, and their query scores."""
    per_projected_token: int = 0
    """Of each vocabulary token that an answer may name."""
    per_searched_position: int = 0
    """Of each source position at which attention neurons are searched: the bound of every one."""
    per_held_vector: int = 0
    """Of each query source: its vector as it is, folded, scaled, and its key in float64."""
    per_pattern_position: int = 0
    """Of each source position whose attention weights are in an answer: those of all heads, as they go out."""
    traced: int = 0
    """Of a trace, whatever it traces: what targets are given by a layer's neurons, and logits of reruns."""
    per_traced_token: int = 0
    """Of each token of a trace: every neuron as it is frozen, and what its pass keeps for gradients."""
    per_traced_pair: int = 0
    """Of each pair of its positions: attention weights, kept and with what gradients need."""
    per_rerun_token: int = 0
    """Of each token of its reruns: what a forward pass takes."""
    heads: int = 2**31
    """Those that the model has: no more are detailed, whatever is asked for."""
    per_value: int = 0
    """Of each number that neurons are ranked by, up to `values_at_once` of them."""
    values_at_once: int = 0
    ffn_neurons: int = 0
    """Such numbers of an explained token."""
    attention_neurons: int = 0
    """Such numbers of an explained token, and of each position at which they are searched."""
    widest_ffn: int = 0
    """Such numbers of a query source."""
    per_kept_token: int = 0
    """Of each padded token of a batch that asks for query neurons, up to `kept` bytes: every neuron's coefficient."""
    kept: int = 0

    def batch(self, tasks: Sequence[Task]) -> int:
        """The bytes that a batch of tasks takes."""
        costs = [task.cost(self.heads) for task in tasks]
        longest = max(cost.length for cost in costs)
        scored = sum(cost.scored_rows for cost in costs)
        sequences = sum(cost.sequences for cost in costs)
        streams, sources = (any(getattr(cost, name) for cost in costs) for name in ("reads_streams", "reads_sources"))
        captured = self.per_stream_token * streams + self.per_source_token * sources
        generating = self.per_token + self.per_stream_token + self.per_source_token
        positions = longest * sum(cost.detailed_heads for cost in costs)
        return (
            self.fixed
            + max(
                (self.per_token + captured) * longest * sequences,
                *(generating * cost.generating_tokens for cost in costs),
            )
            + self.per_sequence * max(sequences, *(cost.generating_sequences for cost in costs))
            + self.per_row * min(scored, max(self.rows_at_once, *(cost.rows_together for cost in costs)))
            + self.per_row_token * longest * sum(cost.rows for cost in costs) * sources
            + self.per_scored_head * sum(cost.scored_heads for cost in costs)
            + self.per_head_position * positions
            + self.per_held_position * min(positions, max(self.positions_at_once, longest))
            + self.per_explained * scored
            + self.per_searched_position * sum(cost.searched_positions for cost in costs)
            + self.per_held_vector * sum(cost.held_vectors for cost in costs)
            + self.per_pattern_position * sum(cost.pattern_positions for cost in costs)
            + self.per_projected_token * sum(cost.projected_tokens for cost in costs)
            + self.per_value * min(self.values_at_once, self._values(costs, longest))
            + min(self.kept, self.per_kept_token * longest * sum(cost.kept_sequences for cost in costs))
            + max(map(self._trace, costs))
        )

    def _trace(self, cost: Cost) -> int:
        """Those of a batch run one after another."""
        if not cost.traced_tokens:
            return 0
        return (
            self.traced
            + self.per_traced_token * cost.traced_tokens
            + self.per_traced_pair * cost.traced_tokens**2
            + self.per_rerun_token * cost.rerun_tokens
        )

    def _values(self, costs: Sequence[Cost], longest: int) -> int:
        """Numbers that neurons are ranked by, every sequence as long as the longest."""
        return sum(
            cost.scored_rows * (self.ffn_neurons + self.attention_neurons)
            + cost.searched_positions * longest // cost.length * self.attention_neurons
            + cost.held_vectors * self.widest_ffn
            for cost in costs
        )
