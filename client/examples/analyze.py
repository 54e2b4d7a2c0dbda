"""Study a corpus through a running service, and show the FFN neurons that come most often.

    python client/examples/analyze.py prompts.jsonl study localhost:50051

The command `neuron-attribution analyze` does the same; from Python the data set is at hand for what comes next.
"""

import sys
from pathlib import Path

import pyarrow.compute as pc
from neuron_attribution import AttributeOptions, Client
from neuron_attribution.analysis.corpus import Corpus
from neuron_attribution.analysis.service import ServiceBackend
from neuron_attribution.analysis.study import Study
from pyarrow import parquet

SHOWN = 10


def main(prompts: Path, folder: Path, address: str) -> None:
    """Study, or go on with the study, and print."""
    options = AttributeOptions(top_k=100, projection_top_k=5)
    study = Study(corpus=Corpus(prompts, options), folder=folder)
    with Client(address) as client:
        backend = ServiceBackend(client)
        failed = study.run(backend, backend.describe().model, {})
    print(f"{failed} prompts have failed")
    neurons = parquet.read_table(folder / "aggregates" / "neurons.parquet")
    for row in neurons.filter(pc.field("kind") == "ffn").slice(0, SHOWN).to_pylist():
        print(f"{row['layer']}.{row['index']}: top 100 of {row['share']:.0%}, mean score {row['mean_score']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
