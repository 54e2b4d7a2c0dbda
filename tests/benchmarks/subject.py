"""What is measured: an engine, the same weights as plain transformers model, and prompts."""

from dataclasses import dataclass, replace

import torch
from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import Explanation
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.prompts import PROMPTS, checked


@dataclass(frozen=True, eq=False)
class Subject:
    """`model` runs transformers' own attention (sdpa); `folder` is None for a model made here."""

    engine: object
    model: object
    prompts: tuple[tuple[int, ...], ...]
    name: str
    folder: object = None

    def with_model(self):
        """The same with its folder's model, as transformers loads it."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="sdpa")
        return replace(self, model=model.eval())

    @property
    def sizes(self):
        return self.engine.facts.sizes

    def forward(self, sequences):
        """The plain forward pass of transformers."""
        with torch.inference_mode():
            return self.model(input_ids=self.tensor(sequences), use_cache=False).logits

    def base(self, sequences):
        """The same without logits."""
        with torch.inference_mode():
            return self.model.base_model(input_ids=self.tensor(sequences), use_cache=False)

    def tensor(self, sequences):
        return torch.tensor([list(sequence) for sequence in sequences], device=self.model.device)

    def target(self, prompt):
        """The token that is explained: the model's own."""
        return int(self.forward([prompt])[0, -1].argmax())

    def attribute(self, sequences, **options):
        """The full attribution of a batch, every projection computed anew. Outcomes, one per sequence."""
        outcomes = self.engine.run([task(sequence, **options) for sequence in sequences])
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def explain_last(self, sequence, count, **options):
        """The full attribution of the last tokens of one sequence, from one pass."""
        (outcome,) = self.engine.run([task(sequence[:-1], count, sequence[-count:], **options)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def long_prompt(self, tokens):
        """Prompts one after another, cut to a length."""
        joined = [token for prompt in self.prompts for token in prompt]
        return tuple((joined * (tokens // len(joined) + 1))[:tokens])

    def forget(self):
        """Empty the engine's memory of neurons' projections, so that no call profits from an earlier one."""
        self.engine._projector._remembered.clear()


def task(sequence, count=1, targets=(None,), **options):
    """The predictions at the last positions, of the targets or the model's own."""
    first = len(sequence) - count
    explained = tuple(ExplainedToken(first + index, target) for index, target in enumerate(targets))
    return AttributeTask(token_ids=tuple(sequence), explained=explained, options=AttributeOptions(**options))


def explanation(outcome) -> Explanation:
    return outcome.explanations[0]


def demo(threads):
    return demo_engine(threads).with_model()


def demo_engine(threads):
    """The demo model's engine alone, without a second copy of the model in memory."""
    folder = demo_folder()
    engine = load_engine(LoadSettings("demo", device="cpu", threads=threads))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = checked([tokenizer(prompt, add_special_tokens=False).input_ids for prompt in PROMPTS])
    return Subject(engine, None, prompts, f"{engine.facts.identity.name} {engine.facts.identity.revision}", folder)


SHAPES = {
    "tiny": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 101,
    },
    "llama-7b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    },
    "llama-3-8b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
}


def of_shape(name, device, threads):
    """A model of random weights, built where it runs; in bfloat16 on a GPU, in float32 on a CPU."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = _config(name)
    model = _built(config, dtype, device)
    twin = _sharing(model, _config(name), dtype)
    generator = torch.Generator().manual_seed(0)
    lengths = [13 + index % 12 for index in range(20)]
    prompts = [torch.randint(config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return Subject(engine_from(model, name=name), twin, checked(prompts), f"{name} shape, random weights")


def _built(config, dtype, device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def _sharing(model, config, dtype):
    """A second model around the same weights, which the engine does not prepare."""
    config._attn_implementation = "sdpa"
    twin = _built(config, dtype, "meta")
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.model.rotary_emb = model.model.rotary_emb
    return twin.eval()


def _config(name):
    return LlamaConfig(**SHAPES[name], max_position_embeddings=4096, bos_token_id=None, eos_token_id=None)
