"""What a user would take instead to rank FFN neurons: captum and TransformerLens, through their public interfaces.

Each returns the scores of every FFN neuron at the last position, [L, N].
"""

import warnings
from importlib.util import find_spec

import torch

STEPS = 20
INSTALLED = all(find_spec(name) for name in ("captum", "transformer_lens"))


class GradientTimesActivation:
    """captum's LayerGradientXActivation of all down projections' inputs, for the target's logit."""

    def __init__(self, model):
        from captum.attr import LayerGradientXActivation

        self._method = LayerGradientXActivation(_last_logits(model), _down_projections(model))

    def scores(self, ids, target):
        found = self._method.attribute(ids, target=target, attribute_to_layer_input=True)
        return torch.stack([_tensor(layer)[0, -1] for layer in found]).detach()


class IntegratedGradients:
    """captum's LayerIntegratedGradients, one layer after another: all at once would cut each layer off the earlier."""

    def __init__(self, model):
        from captum.attr import LayerIntegratedGradients

        forward = _last_logits(model)
        self._methods = [LayerIntegratedGradients(forward, module) for module in _down_projections(model)]

    def layer_scores(self, ids, target, layer):
        found = self._methods[layer].attribute(
            ids, baselines=torch.zeros_like(ids), target=target, n_steps=STEPS, attribute_to_layer_input=True
        )
        return _tensor(found)[0, -1].detach()

    def scores(self, ids, target):
        return torch.stack([self.layer_scores(ids, target, layer) for layer in range(len(self._methods))])


class NeuronResults:
    """TransformerLens' stack_neuron_results through the final norm, onto the target's unembedding direction."""

    def __init__(self, folder, model, tokenizer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformer_lens.model_bridge import TransformerBridge

            self._bridge = TransformerBridge.boot_transformers(
                str(folder), hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.float32
            )
        self._layers = self._bridge.cfg.n_layers

    @torch.inference_mode()
    def scores(self, ids, target):
        _, cache = self._bridge.run_with_cache(ids)
        direction = self._bridge.W_U[:, target]
        found = cache.stack_neuron_results(layer=-1, pos_slice=-1, apply_ln=True, project_output_onto=direction)
        return found.reshape(self._layers, -1)


def _last_logits(model):
    return lambda ids: model(input_ids=ids, use_cache=False).logits[:, -1]


def _down_projections(model):
    return [layer.mlp.down_proj for layer in model.model.layers]


def _tensor(found):
    return found[0] if isinstance(found, tuple) else found
