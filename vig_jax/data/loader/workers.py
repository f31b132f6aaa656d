"""The start of a worker process, and its end when the main process ends."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_NICENESS = 10  # the process that feeds the accelerator has priority


def isolate(when_orphaned: Callable[[], None] = lambda: None) -> None:
    """Prepares a worker process; must run first.

    Args:
        when_orphaned: called at the end of a worker whose main process has ended.
    """
    os.nice(_NICENESS)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"  # a worker must not take memory on the accelerator
    if jax := sys.modules.get("jax"):  # imported already: the environment has no effect any more
        jax.config.update("jax_platforms", "cpu")
    # Ctrl-C and a scheduler's SIGTERM reach all processes of the group. The main process handles
    # them, and may need another batch before it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(when_orphaned,), daemon=True).start()


def _die_with_parent(when_orphaned: Callable[[], None]) -> None:
    """Ends this worker when the main process has ended for any reason.

    prctl(PR_SET_PDEATHSIG) would act when the thread that started the worker ends.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(1.0)
    try:
        when_orphaned()
    finally:
        os._exit(1)


def cpu_count() -> int:
    """Returns the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
