"""The first steps of a command and its worker processes, before they import anything expensive."""

import logging
import sys

GC_THRESHOLDS = 100_000, 20, 100
"""For `gc.set_threshold`: tracing makes many objects that stay; the default scans them often."""


def block_jax_import() -> None:
    """Makes `import jax` fail in this process, so that Grain and others do not load it.

    Worker processes call this, because they only read and decode. It halves their start-up time and
    their memory.
    """
    sys.modules["jax"] = None  # type: ignore[assignment]
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain warns that it has no profiler then
