"""An attribution as an HTML page."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict

from neuron_attribution.convert import attribute_result_to_proto
from neuron_attribution.report.page import page
from neuron_attribution.report.tables import attribution_tables
from neuron_attribution.results import AttributeResult


def attribution_page(result: AttributeResult) -> str:
    """The whole page."""
    targets = ", ".join(repr(explanation.target.token.text) for explanation in result.explanations)
    if result.aggregate is not None:
        targets = repr("".join(prediction.token.text for prediction in result.aggregate.targets))
    message = attribute_result_to_proto(result)
    answer = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return page(f"Why {targets}?", "attribution", {"result": answer}, attribution_tables(result))
