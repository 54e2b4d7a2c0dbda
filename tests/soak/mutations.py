"""Requests that are nearly right: serialized messages with bytes changed, cut out, repeated and put in."""

from neuron_attribution.v1 import neuron_attribution_pb2 as messages

SERVICE = "/neuron_attribution.v1.NeuronAttributionService"
PROMPT = "The capital of France is"
NEURONS = [
    messages.Neuron(ffn=messages.FfnNeuron(layer=1, index=3)),
    messages.Neuron(attention=messages.AttentionNeuron(layer=0, head=1, index=2)),
]
INTERVENTIONS = [
    messages.Intervention(zero=True, neurons=NEURONS, heads=[messages.Head(layer=1, head=2)]),
    messages.Intervention(scale=-0.5, layers=[messages.LayerPart(layer=1, kind=messages.LAYER_PART_KIND_FFN)]),
    messages.Intervention(set=2, neurons=NEURONS[:1], explained_position_only=True),
]
ATTRIBUTIONS = [
    messages.AttributeRequest(prompt=messages.Prompt(text=PROMPT)),
    messages.AttributeRequest(
        model="fake",
        prompt=messages.Prompt(text=PROMPT, add_special_tokens=False),
        target=messages.TokenChoice(text=" Paris"),
        contrast=messages.TokenChoice(text=" Rome"),
        parts=[messages.PART_LAYERS, messages.PART_FFN_VALUE_NEURONS],
        top_k=3,
        direction=messages.DIRECTION_BOTH,
        neurons=NEURONS,
        exhaustive=True,
        interventions=INTERVENTIONS,
    ),
    messages.AttributeRequest(
        prompt=messages.Prompt(token_ids=messages.TokenIds(ids=[1, 2, 300])),
        completion=messages.Completion(text=" Paris is"),
        scoring_method=messages.SCORING_METHOD_NORM,
        position_projection_top_k=2,
    ),
    messages.AttributeRequest(
        prompt=messages.Prompt(text="é\u202e👩‍👩‍👧"),
        generate=2,
        sampling=messages.Sampling(temperature=0.7, top_p=0.9, top_k=40, seed=1),
        head_top_k=1,
        query_sources=5,
    ),
]
VALID = {
    "Attribute": ATTRIBUTIONS,
    "AttributeStream": [messages.AttributeStreamRequest(key="k", request=request) for request in ATTRIBUTIONS],
    "ProjectNeuron": [
        messages.ProjectNeuronRequest(neurons=NEURONS, top_k=3),
        messages.ProjectNeuronRequest(neurons=NEURONS[:1], through=messages.Head(layer=1, head=2), side=2, subkey=2),
    ],
    "Intervene": [
        messages.InterveneRequest(
            prompt=messages.Prompt(text=PROMPT),
            target=messages.TokenChoice(text=" Paris"),
            sets=[messages.InterventionSet(interventions=each) for each in (INTERVENTIONS[:1], INTERVENTIONS)],
            generate=2,
            sampling=messages.Sampling(seed=2**63),
        )
    ],
    "Trace": [
        messages.TraceRequest(prompt=messages.Prompt(text=PROMPT), nodes=3, edge_share=0.5, heads=True),
        messages.TraceRequest(
            prompt=messages.Prompt(text=PROMPT),
            completion=messages.Completion(text=" Paris is"),
            contrast=messages.TokenChoice(text=" Rome"),
            measure=False,
            projection_top_k=2,
        ),
    ],
    "Tokenize": [messages.TokenizeRequest(text=PROMPT, add_special_tokens=True)],
    "GetModel": [messages.GetModelRequest(model="fake")],
}
"""Requests the fake model answers, by call."""


def call_with(channel, method, data, timeout):
    """Send bytes as they are, twice to a stream; the answers' bytes when the returned function is called."""
    if method == "AttributeStream":
        stream = channel.stream_stream(f"{SERVICE}/{method}")(iter([data, data]), timeout=timeout)
        return lambda: list(stream)
    call = channel.unary_unary(f"{SERVICE}/{method}").future(data, timeout=timeout)
    return lambda: [call.result()]


def mutated(message, random):
    """A message's bytes with some fields changed, some bytes changed, or both; one time in twenty, random bytes."""
    if random.randrange(20) == 0:
        return random.randbytes(random.randrange(64))
    kind, changed = random.randrange(3), type(message).FromString(message.SerializeToString())
    for _ in range(random.randrange(1, 4) if kind != 0 else 0):
        _change_field(changed, random)
    data = changed.SerializeToString()
    for _ in range(random.randrange(1, 3) if kind != 1 else 0):
        data = random.choice(_CHANGES)(data, random.randrange(len(data) + 1), random)
    return data


NUMBERS = (0, 1, 2, 7, 63, 64, 1000, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = ("", "\0", "fake", " Paris", "x" * 3000, "\u202e", "👩‍👩‍👧" * 40, "%s{0}\n\x1b[0m", "\U0010ffff", "<bos>")


def _change_field(message, random):
    """Change a field of a message, set or not, or of a message inside it."""
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        _change_items(message, field, random)
    elif field.message_type is not None:
        _change_field(getattr(message, field.name), random)
    elif random.randrange(6) == 0:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, random))


_LARGEST = 2**20
"""Bytes of what a repetition makes: three of them stay under the limit of a request, which gRPC refuses by itself."""


def _change_items(message, field, random):
    items = getattr(message, field.name)
    if random.randrange(3) == 0:
        times = random.choice((1, 10, 400))
        if times * message.ByteSize() < _LARGEST:
            items.extend(list(items) * times)
    elif field.message_type is None:
        items.append(_value(field, random))
    else:
        _change_field(random.choice(items) if items and random.randrange(2) else items.add(), random)


def _value(field, random):
    if field.type == field.TYPE_STRING:
        return random.choice(TEXTS)
    if field.type == field.TYPE_BOOL:
        return random.random() < 0.5
    if field.type == field.TYPE_ENUM:
        return random.choice((-1, 0, 1, 2, 3, 99))
    return random.choice(NUMBERS)


def _replaced(data, at, random):
    return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]


def _flipped(data, at, random):
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :] if at < len(data) else data


def _inserted(data, at, random):
    return data[:at] + random.randbytes(random.randrange(1, 6)) + data[at:]


def _cut(data, at, random):
    return data[:at] + data[at + random.randrange(8) :]


def _truncated(data, at, random):
    return data[:at]


def _repeated(data, at, random):
    return data[:at] + data[at : at + random.randrange(1, 32)] * random.randrange(2, 5) + data[at:]


_CHANGES = (_replaced, _flipped, _inserted, _cut, _truncated, _repeated)
