"""How a worker process begins, and that it ends when the main process does."""

import multiprocessing
import os
import signal
import sys
import threading
import time

_NICENESS = 10  # the process that feeds the accelerator goes first where CPUs are scarce


def isolate() -> None:
    """Runs first in every worker process."""
    os.nice(_NICENESS)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"  # a worker must not take memory on the accelerator
    if jax := sys.modules.get("jax"):  # Grain has imported it: too late for the environment
        jax.config.update("jax_platforms", "cpu")
    # Ctrl-C and a scheduler's SIGTERM reach the whole group: the main process decides what to do,
    # and may need another batch before it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends this worker when the main process is gone, however it went.

    prctl(PR_SET_PDEATHSIG) would act when the *thread* that started the worker ends.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(1.0)
    os._exit(1)


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
