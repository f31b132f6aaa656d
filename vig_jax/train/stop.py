"""Stops a run on a signal without losing work."""

import signal
import threading
import time
from types import FrameType, TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

_ONE_REQUEST = 1.0  # seconds


class StopRequest:
    """Defers the first SIGINT, SIGTERM or SIGHUP; the training loop checks it between updates.

    A later signal acts at once. Those within a second of the first are the same request: a terminal
    or a scheduler sends to all processes, and a supervisor passes on what it gets. Outside of the
    main thread, where Python cannot catch signals, this does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._requested = 0.0  # on the monotonic clock
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
        if self.signal is None:
            self.signal, self._requested = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._requested > _ONE_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
