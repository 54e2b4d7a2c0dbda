"""The bounded top-k against brute force on the demo model: `make verify`.

    states.py        what each prompt went through, by hooks of its own
    brute_force.py   every neuron against the whole vocabulary, its projection shared between all prompts
    rankings.py      the engine's rankings, compared with it
    report.py        docs/verification.md
    effects.py       how well gradients and relevances rank what neurons do: a script of its own

Nothing here uses the engine but the one call whose answers are verified.
"""

from neuron_attribution_server.model.loading import math_libraries

math_libraries.configure()
