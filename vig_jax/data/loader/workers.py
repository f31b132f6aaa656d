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
    if (parent := multiprocessing.parent_process()) is not None:
        arguments = parent.pid, when_orphaned
        threading.Thread(target=end_with_parent, args=arguments, daemon=True).start()


def end_with_parent(parent: int | None, when_orphaned: Callable[[], None] = lambda: None) -> None:
    """Ends this process when its parent has ended for any reason; runs in a separate thread.

    prctl(PR_SET_PDEATHSIG) would act when the thread that started this process ends.

    Args:
        parent: the process that started this one.
        when_orphaned: called at the end.
    """
    while os.getppid() == parent:
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
