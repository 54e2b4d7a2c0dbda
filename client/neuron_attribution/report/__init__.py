"""Results as one HTML file: no network, no build step, everything escaped.

`page` assembles the file from assets/ (ours) and vendor/ (d3 and Observable Plot, see its README.md); its scripts read
the embedded data, which is the canonical protobuf JSON of the answer. `tables` is what is read without scripts.
May import `convert`, `display` and the data.
"""

from neuron_attribution.report.attribution import attribution_page
from neuron_attribution.report.comparison import comparison_page
from neuron_attribution.report.trace import trace_page

__all__ = ["attribution_page", "comparison_page", "trace_page"]
