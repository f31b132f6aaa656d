"""How the processes that a command starts begin: before they import anything of weight."""

import logging
import sys


def forgo_jax() -> None:
    """Has this process do without JAX, which Grain and others import if they can.

    To be called by worker processes, which only read and decode: it halves the time they take to
    start and the memory they keep.
    """
    sys.modules["jax"] = None  # type: ignore[assignment]
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain warns that it has no profiler then
