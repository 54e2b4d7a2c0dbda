"""The public names, and what importing them must not cost."""

import subprocess
import sys

import neuron_attribution

PUBLIC = """
    AbortedError Aggregate AggregateExplanation AsyncClient AttentionNeuron AttributeOptions AttributeRequest
    AttributeResult CancelledError Client ComparedSide Comparison ComponentKind Conversation Coverage
    DeadlineExceededError DifferenceRanking Direction Exactness Explanation FailedPreconditionError FfnNeuron
    FieldViolation FinishReason Generation Graph Head HeadEffects HeadPosition HeadScore InternalError
    InterveneRequest InterveneResult Intervention InterventionResult InterventionSet InvalidArgumentError
    Invariant LayerPart LayerPartKind LayerParts LayerScores Limits Message Mixer ModelIdentity ModelInfo
    ModelSizes Neuron NeuronAttributionError NeuronComparison NeuronDifference NeuronProjection NeuronRanking
    NeuronScore NotFoundError Operation Part PermissionDeniedError PredictionState ProjectNeuronRequest
    ProjectNeuronResult ProjectedRank ProjectedToken Projection PromotedSide QueryLayer QueryLayers
    QuerySource ResourceExhaustedError Sampling Scale ScoringMethod SetTo Side Span StreamResult Subkey
    Timings Token TokenOrigin TokenPrediction TokenizeRequest TokenizeResult TokenizedToken TokenizerFacts
    Trace TraceCoverage TraceEdge TraceNode TraceNodeKind TraceOptions TracePath TraceRequest
    UnauthenticatedError UnavailableError UnimplementedError Zero parse_head parse_neuron parse_query_source
"""


def test_public_names() -> None:
    assert sorted(neuron_attribution.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(neuron_attribution, name) for name in neuron_attribution.__all__)


def test_the_two_clients_have_the_same_methods() -> None:
    names = [
        {name for name in vars(client) if not name.startswith("_")}
        for client in (neuron_attribution.Client, neuron_attribution.AsyncClient)
    ]
    methods = {
        "attribute",
        "attribute_stream",
        "close",
        "compare",
        "get_model",
        "head_effects",
        "intervene",
        "project_neuron",
        "tokenize",
        "trace",
    }
    assert names[0] == names[1] == methods


def test_the_client_imports_neither_model_libraries_nor_the_server() -> None:
    code = """
import sys, neuron_attribution, neuron_attribution.cli.main
heavy = {"torch", "transformers", "tokenizers", "neuron_attribution_server", "grpc_status"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_only_some_need_is_imported_when_it_is_needed() -> None:
    code = """
import sys, neuron_attribution
sys.exit(", ".join(sorted({"shtab", "pandas", "matplotlib", "networkx"} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
