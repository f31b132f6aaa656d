"""Stops a run on a signal without losing work."""

import signal
import threading
import time
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

_ONE_REQUEST = 1.0  # seconds


class StopRequest:
    """Defers the first SIGINT, SIGTERM or SIGHUP; the training loop checks it between updates.

    A later signal acts at once. Those within a second of the first are the same request: a terminal
    or a scheduler sends to all processes, and a supervisor passes on what it gets. Outside of the
    main thread, where Python cannot catch signals, this does nothing.

    In a run on several processes, a signal to one of them stops all, at the same update. JAX's
    preemption service makes them agree, within seconds, without communication by the devices. It
    catches SIGTERM from the start of `jax.distributed` on. The other signals are passed on to it as
    a SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._requested = 0.0  # on the monotonic clock
        self._calls = 0
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.signal is not None

    def agreed(self) -> bool:
        """Returns whether the run stops now, on all processes.

        All processes must call this at the same points of the run.
        """
        if jax.process_count() == 1:
            return self.requested
        self._calls += 1
        return bool(multihost_utils.reached_preemption_sync_point(self._calls))

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGHUP]
            if jax.process_count() == 1:
                numbers.append(signal.SIGTERM)  # elsewhere JAX has it
            for number in numbers:
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
            if jax.process_count() > 1:
                signal.raise_signal(signal.SIGTERM)
        elif time.monotonic() - self._requested > _ONE_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
