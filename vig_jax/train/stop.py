"""Stops a run on a signal without losing work."""

import signal
import threading
from types import FrameType, TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """Defers the first SIGINT, SIGTERM or SIGHUP; the training loop checks it between updates.

    A second signal acts at once. Outside of the main thread, where Python cannot catch signals,
    this does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.signal is not None

    def agreed(self, step: int, every: int) -> bool:
        """Returns whether all processes stop at this step.

        Several processes synchronise every `every` steps.
        """
        if jax.process_count() == 1:
            return self.requested
        if step % max(every, 1):
            return False
        return bool(np.any(multihost_utils.process_allgather(np.asarray(self.requested))))

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
