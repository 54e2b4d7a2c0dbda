"""The fake engine, for a server that waits for nobody as long as others do: it is set so where this is imported."""

from neuron_attribution_server.front_end.endpoints import health, ports
from neuron_attribution_server.front_end.transfer import hanging_up
from service.fakes import make_engine

hanging_up.UNREAD_SECONDS = 1.0
health.MOST_WATCHERS = 3
ports.HANDSHAKE_SECONDS = 1.0
ports.PING_SECONDS = ports.PONG_SECONDS = 1.0

__all__ = ["make_engine"]
