"""The fake engine, for a server in a hurry whose process has a thread that does not end for a minute."""

import multiprocessing
import threading

from neuron_attribution_server import stopping
from service.fakes import make_engine

stopping.LATE_SECONDS = 2.0
if multiprocessing.parent_process() is None:
    threading.Thread(target=threading.Event().wait, args=(60,)).start()

__all__ = ["make_engine"]
