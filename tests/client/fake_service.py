"""A service on a real port that answers with samples, or with the error it is told to."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
from neuron_attribution import convert
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import Aggregate, Part
from neuron_attribution.results import (
    AggregateExplanation,
    AttributeResult,
    ComponentKind,
    Coverage,
    Exactness,
    Explanation,
    HeadPosition,
    HeadScore,
    InterveneResult,
    InterventionResult,
    Invariant,
    LayerScores,
    Limits,
    ModelIdentity,
    ModelInfo,
    ModelSizes,
    NeuronProjection,
    NeuronRanking,
    NeuronScore,
    PredictionState,
    ProjectedRank,
    ProjectedToken,
    Projection,
    ProjectNeuronResult,
    PromotedSide,
    QueryLayer,
    QueryLayers,
    Timings,
    Token,
    TokenizedToken,
    TokenizeResult,
    TokenizerFacts,
    TokenPrediction,
)
from neuron_attribution.traces import Graph, Trace, TraceCoverage, TraceEdge, TraceNode, TraceNodeKind
from neuron_attribution.transport import status
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services

IDENTITY = ModelIdentity("tiny", "abc123", "float32")
TOKENS = (Token(3, "The"), Token(4, " sky"), Token(5, " is\n"))
PROJECTION = Projection(
    top=(ProjectedToken(Token(7, " blue"), 2.5), ProjectedToken(Token(8, "\x1b[31m"), 1.5)),
    bottom=(ProjectedToken(Token(9, " 緑"), -2.0),),
)
COVERAGE = Coverage(neurons=64, bounded=64, scored=12, exact=True)
FFN_SCORE = NeuronScore(
    FfnNeuron(1, 17),
    0.5,
    None,
    -1.25,
    PROJECTION,
    PromotedSide.BOTTOM,
    ProjectedRank(2.5, 1),
    ProjectedRank(-0.25, 40),
    0.75,
)
ATTENTION_SCORE = NeuronScore(
    AttentionNeuron(0, 1, 2),
    0.25,
    1,
    0.75,
    PROJECTION,
    PromotedSide.TOP,
    ProjectedRank(2.5, 1),
    ProjectedRank(-0.25, 40),
)
QUERY_SCORE = NeuronScore(FfnNeuron(0, 5), 2**-11, projection=PROJECTION)
HEAD = HeadScore(
    Head(1, 0),
    0.75,
    np.array([0.125, 0.5, 0.125], np.float32),
    np.array([0.5, 0.25, 0.25], np.float32),
    (HeadPosition(1, PROJECTION, PROJECTION, PROJECTION),),
)
QUERY_LAYERS = QueryLayers(
    (
        QueryLayer(ComponentKind.FFN, 0, 3.0),
        QueryLayer(ComponentKind.EMBEDDING, 0, 2.0),
        QueryLayer(ComponentKind.ATTENTION, 1, 1.0),
    ),
    sources=30,
    skipped_sources=1,
)
EXPLANATION = Explanation(
    position=2,
    target=TokenPrediction(Token(7, " blue"), 0.75, -0.25, 1),
    contrast=TokenPrediction(Token(10, " red"), 0.125, -2.0, 2),
    predictions=(
        TokenPrediction(Token(7, " blue"), 0.75, -0.25, 1),
        TokenPrediction(Token(11, " grey"), 0.0625, -2.75, 3),
    ),
    layers=LayerScores(np.array([0.5, 1.5], np.float32), np.array([2.5, -0.5], np.float32), -4.0, -0.25, 0.0),
    head_scores=np.array([[0.25, 0.25], [0.75, 0.75]], np.float32),
    heads=(HEAD,),
    heads_decreasing=(HeadScore(Head(0, 1), -0.5, np.array([0.0, 0.0, -0.5], np.float32), np.ones(3, np.float32)),),
    ffn_value_neurons=NeuronRanking((FFN_SCORE,), COVERAGE),
    ffn_value_neurons_decreasing=NeuronRanking((FFN_SCORE,), COVERAGE),
    attention_value_neurons=NeuronRanking((ATTENTION_SCORE,), COVERAGE),
    attention_value_neurons_decreasing=NeuronRanking((), Coverage(64, 64, 0, False)),
    ffn_query_layers=QUERY_LAYERS,
    attention_query_layers=QUERY_LAYERS,
    query_ffn_neurons=NeuronRanking((QUERY_SCORE,), COVERAGE),
    neurons=(FFN_SCORE,),
)
AGGREGATE = AggregateExplanation(
    Aggregate.SUM,
    log_probability=-2.25,
    positions=(1, 2),
    targets=(TokenPrediction(Token(5, " is\n"), 0.125, -2.0, 2), EXPLANATION.target),
    contrast_log_probability=-4.0,
    contrast_targets=(TokenPrediction(Token(10, " red"), 0.0625, -4.0, 3),),
    layers=EXPLANATION.layers,
    head_scores=EXPLANATION.head_scores,
    heads=(replace(HEAD, positions=(), token_scores=(0.5, 0.5, 0.25)),),
    ffn_value_neurons=NeuronRanking(
        (
            NeuronScore(
                FfnNeuron(1, 17),
                0.5,
                projection=PROJECTION,
                promoted_side=PromotedSide.BOTTOM,
                token_scores=(0.5, 0.25, 0.25),
                token_coefficients=(-1.0, -0.5, 2.0),
            ),
        ),
        COVERAGE,
    ),
)
ATTRIBUTION = AttributeResult(IDENTITY, TOKENS, (EXPLANATION,), Timings(0.001, 0.002, 0.003, 0.004, 2, 7))
PROJECTIONS = ProjectNeuronResult(IDENTITY, (NeuronProjection(FfnNeuron(1, 17), PROJECTION),))
STATE = PredictionState(EXPLANATION.target, EXPLANATION.predictions, (TOKENS[1], TOKENS[2]))
INTERVENED = InterveneResult(
    IDENTITY,
    TOKENS,
    STATE,
    (InterventionResult(PredictionState(EXPLANATION.contrast, EXPLANATION.predictions), 0.5),),
    Timings(0.001, 0.002, 0.003, 0.004, 2, 12),
)
TRACE = Trace(
    IDENTITY,
    TOKENS,
    Graph(
        positions=(2,),
        targets=(EXPLANATION.target,),
        contrasts=(EXPLANATION.contrast,),
        output=4.0,
        log_odds=3.5,
        nodes=(
            TraceNode(TraceNodeKind.OUTPUT, 4.0, 4.0, other=0.25),
            TraceNode(
                TraceNodeKind.FFN_NEURON,
                -2.0,
                1.5,
                FfnNeuron(1, 17),
                position=2,
                effect=0.5,
                gradient=0.75,
                projection=PROJECTION,
                promoted_side=PromotedSide.BOTTOM,
                activity=0.125,
                other=-0.5,
            ),
            TraceNode(TraceNodeKind.FFN_NEURON, 8.0, 1.0, FfnNeuron(0, 5), position=1, effect=-0.25, always_on=True),
            TraceNode(TraceNodeKind.TOKEN, 1.0, 2.5, position=1),
            TraceNode(TraceNodeKind.TOKEN, 1.0, -0.5, position=2),
            TraceNode(TraceNodeKind.BIAS, 1.0, 0.75, layer=0),
        ),
        edges=(
            TraceEdge(1, 0, 2.0, 0.5),
            TraceEdge(3, 0, 1.0, 0.25),
            TraceEdge(5, 0, 0.75, 0.125),
            TraceEdge(2, 1, -1.0, 0.5, Head(1, 0), -0.75),
            TraceEdge(4, 1, -0.5, 0.25),
            TraceEdge(3, 2, 6.0, 0.75),
            TraceEdge(5, 2, 2.0, 0.25),
        ),
        coverage=TraceCoverage(192, 8, 8, 0.9375, 0.875, 0.75),
    ),
    Timings(0.001, 0.002, 0.003, 0.004, 1, 3),
)
"""Two neurons between two tokens, the biases of a layer and the output."""
TOKENIZATION = TokenizeResult(IDENTITY, (TokenizedToken(TOKENS[0], 0, 3), TokenizedToken(TOKENS[1], 3, 7)))
INFO = ModelInfo(
    model=IDENTITY,
    family="llama",
    device="cpu",
    sizes=ModelSizes(2, 2, 1, 8, 32, 16, 1000),
    limits=Limits(
        2048, 1000, 64, 1000, 64 * 1024 * 1024, 256, 65536, 8192, 32, 0.25, 5.0, 0.5, 4 * 1024 * 1024, 64, 2**34, 32
    ),
    supported_parts=tuple(Part),
    exactness=Exactness(True, "bounds hold"),
    invariants=(Invariant("residual_sum", "the writes add up to the final state", 0.25, 0.5),),
    tokenizer=TokenizerFacts(True, prefix=(Token(1, "<s>"),)),
    version="0.1.0",
)


class FakeService(services.NeuronAttributionServiceServicer):
    """Answers with samples. Errors in `errors` are raised first, one a call; `delay` seconds pass before an answer."""

    def __init__(self) -> None:
        self.requests = []
        self.metadata = []
        self.errors: list[NeuronAttributionError] = []
        self.delay = 0.0

    def Attribute(self, request, context):
        self._receive(convert.attribute_request_from_proto, request, context)
        return convert.attribute_result_to_proto(ATTRIBUTION)

    def ProjectNeuron(self, request, context):
        self._receive(convert.project_neuron_request_from_proto, request, context)
        return convert.project_neuron_result_to_proto(PROJECTIONS)

    def Intervene(self, request, context):
        self._receive(convert.intervene_request_from_proto, request, context)
        return convert.intervene_result_to_proto(replace(INTERVENED, results=INTERVENED.results * len(request.sets)))

    def Trace(self, request, context):
        self._receive(convert.trace_request_from_proto, request, context)
        return convert.trace_to_proto(TRACE)

    def Tokenize(self, request, context):
        self._receive(convert.tokenize_request_from_proto, request, context)
        return convert.tokenize_result_to_proto(TOKENIZATION)

    def GetModel(self, request, context):
        self._receive(lambda message: message.model, request, context)
        return convert.model_info_to_proto(INFO)

    def _receive(self, read, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        time.sleep(self.delay)
        try:
            self.requests.append(read(request))
            if self.errors:
                raise self.errors.pop(0)
        except NeuronAttributionError as error:
            context.set_trailing_metadata(status.trailing_metadata(error))
            context.abort(status.status_code(error), status.public_message(error))


@contextmanager
def serving(service: FakeService, credentials=None, options=()) -> Iterator[str]:
    """The address of a running server."""
    server = grpc.server(ThreadPoolExecutor(2), options=options)
    services.add_NeuronAttributionServiceServicer_to_server(service, server)
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()
