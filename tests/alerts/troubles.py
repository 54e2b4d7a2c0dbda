"""The faults: what is wrong with each server, who calls it, what must fire, and what its log says of it."""

from dataclasses import dataclass, field

from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from service.faulty_engines import HUGE
from service.servers import attribution

_TOO_LARGE = messages.AttributeRequest(prompt=messages.Prompt(token_ids=messages.TokenIds(ids=(HUGE,))))
_WORKER_AWAY = {"NeuronAttributionWorkerDown", "NeuronAttributionNotReady", "NeuronAttributionNoReplicaReady"}


@dataclass(frozen=True)
class Trouble:
    """A server with a fault. `by_the_way` may fire as well, while its worker is away."""

    alerts: set
    engine: str = "fakes.make_engine"
    settings: dict = field(default_factory=dict)
    loads: bool = True
    requests: tuple = (attribution(),)
    callers: int = 0
    by_the_way: set = frozenset()
    log: tuple = ()


TROUBLES = {
    "errors": Trouble(
        {"NeuronAttributionErrorBudgetBurnFast", "NeuronAttributionErrorBudgetBurnSlow"},
        requests=(attribution(), attribution(" crash")),
        callers=1,
        log=("tasks failed",),
    ),
    "slow": Trouble(
        {"NeuronAttributionLatencyBudgetBurnFast", "NeuronAttributionLatencyBudgetBurnSlow"},
        engine="alarming_engines.make_late_engine",
        callers=24,
    ),
    "memory": Trouble(
        {"NeuronAttributionOutOfMemorySplits", "NeuronAttributionOutOfMemoryFailures"},
        engine="faulty_engines.make_slow_small_engine",
        requests=(*[attribution()] * 4, _TOO_LARGE),
        callers=8,
        log=("no memory for a batch of",),
    ),
    "overload": Trouble(
        {"NeuronAttributionRefusingCalls", "NeuronAttributionQueueSaturated"},
        engine="fakes.make_timed_engine",
        settings={"queued_requests": 8, "batch_requests": 1},
        callers=24,
    ),
    "certificate": Trouble(
        {
            "NeuronAttributionCertificateExpiresSoon",
            "NeuronAttributionCertificateExpiryCritical",
            "NeuronAttributionInexactRankings",
        },
        engine="alarming_engines.make_inexact_engine",
        callers=1,
    ),
    "tokens": Trouble({"NeuronAttributionReloadFailing"}, log=("what was read before stays in use",)),
    "loading": Trouble(
        {"NeuronAttributionNotReady", "NeuronAttributionNoReplicaReady"},
        engine="fakes.hang_while_loading",
        loads=False,
    ),
    "reload": Trouble(
        {"NeuronAttributionWorkerRestarted", *_WORKER_AWAY},
        engine="alarming_engines.make_engine_once",
        log=("restarting in",),
    ),
    "restarts": Trouble(
        {"NeuronAttributionWorkerRestarted", "NeuronAttributionWorkerCrashLoop", "NeuronAttributionTargetDown"},
        settings={"restarts": 3},
        by_the_way=_WORKER_AWAY,
        log=(
            "was killed by SIGKILL",
            "is back as process",
            "no worker will come back; the server ends with exit status 1",
        ),
    ),
}
