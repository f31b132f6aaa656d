"""Notes which example each worker process has in hand, and ends a worker that takes too long.

Every worker writes its note into its own small file, which it maps into memory. The main
process reads the notes when a worker has died, or has been silent for too long.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import re
import shutil
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vig_jax.data.loader import shared_memory

logger = logging.getLogger(__name__)

_NOTE = struct.Struct("<qqd")  # index + 1 or 0, group, time on the system's monotonic clock
_IN_SHARED_MEMORY = re.compile(r"(vig_jax_[0-9a-f]{8})_watch_")
_INTERVAL = 0.5  # seconds between two looks at the notes
_LOOKS, _PAUSE = 20, 0.05  # for workers that have just ended; seconds


class _Note(NamedTuple):
    number: int  # of the example in its data set
    group: int
    started: float


_in_worker: list[mmap.mmap] = []  # the note of this process, if it is a worker
_in_threads: dict[int, tuple[int, _Note]] = {}  # owner and note, by thread, in other processes


def join(folder: str) -> None:
    """Prepares this worker process to take notes.

    Args:
        folder: of the `Watch` in the main process.
    """
    # Open and locked until this process ends: that is how the main process sees the end.
    handle = os.open(Path(folder, str(os.getpid())), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.ftruncate(handle, _NOTE.size)
    _in_worker[:] = [mmap.mmap(handle, _NOTE.size)]


def discard(folder: str) -> None:
    """Removes what a main process that has ended left behind: the notes, and its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    if match := _IN_SHARED_MEMORY.match(Path(folder).name):
        (Path(folder).parent / f"{match[1]}.lock").unlink(missing_ok=True)


def begin(index: int, group: int = 0, owner: int = 0) -> None:
    """Notes that an example is read and processed from now on.

    Args:
        index: of the example in its data set.
        group: number of the data set, where a worker has several.
        owner: identity of the data set, where threads of one process read several.
    """
    started = time.monotonic()
    if _in_worker:
        _NOTE.pack_into(_in_worker[0], 0, index + 1, group, started)
    else:
        _in_threads[threading.get_ident()] = owner, _Note(index, group, started)


def end() -> None:
    """Notes that no example is in hand."""
    if _in_worker:
        _NOTE.pack_into(_in_worker[0], 0, 0, 0, time.monotonic())
    else:
        _in_threads.pop(threading.get_ident(), None)


class Watch:
    """Reads the notes of workers or threads. Close it.

    Args:
        name_of: returns the name of an example from its index and group.
        seconds: a worker is killed if it has one example in hand for longer than this. A thread
            cannot be ended: its example is only reported. 0: no limit.
        owner: identity of the data set, to watch the threads of this process instead of workers.

    Attributes:
        folder: that workers must join.
        stuck: names of examples that exceeded the limit.
    """

    def __init__(
        self, name_of: Callable[[int, int], str], seconds: float, owner: int | None = None
    ):
        self._name_of = name_of
        self._seconds = seconds
        self._owner = owner
        self._closed = threading.Event()
        self.stuck: list[str] = []
        self.folder = "" if owner is not None else _make_folder()
        if seconds > 0:
            threading.Thread(target=self._run, daemon=True).start()

    def in_hand_of_the_dead(self) -> list[str]:
        """Returns the names of the examples that workers had in hand when they ended.

        Waits for a moment: the end of a worker is seen before the system has released its lock.
        """
        for _ in range(_LOOKS):
            notes = self._notes().items()
            if found := [self._name(note) for pid, note in notes if not self._is_alive(pid)]:
                return found
            time.sleep(_PAUSE)
        return []

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _notes(self) -> dict[int, _Note]:
        """Returns the notes of those that have an example in hand, by process or thread."""
        if self._owner is not None:
            every = list(_in_threads.items())
            return {thread: note for thread, (owner, note) in every if owner == self._owner}
        found = {}
        for file in Path(self.folder).glob("*"):
            contents = file.read_bytes()
            if len(contents) == _NOTE.size and (fields := _NOTE.unpack(contents))[0]:
                found[int(file.name)] = _Note(fields[0] - 1, *fields[1:])
        return found

    def _name(self, note: _Note) -> str:
        return self._name_of(note.number, note.group)

    def _run(self) -> None:
        reported: set[_Note] = set()
        while not self._closed.wait(_INTERVAL):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                self._look(reported)

    def _look(self, reported: set[_Note]) -> None:
        late = time.monotonic() - self._seconds
        for where, note in self._notes().items():
            if note.started > late or note in reported:
                continue
            reported.add(note)
            name = self._name(note)
            logger.error("%s has been in hand for more than %g s", name, self._seconds)
            if self._owner is None and self._is_alive(where):
                self.stuck.append(name)
                os.kill(where, signal.SIGKILL)

    def _is_alive(self, pid: int) -> bool:
        """Returns whether a worker holds the lock of its note; its number may be reused later."""
        with Path(self.folder, str(pid)).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False


def _make_folder() -> str:
    if (prefix := shared_memory.own_prefix()) is not None:
        return tempfile.mkdtemp(prefix=f"{prefix}watch_", dir=shared_memory.SHARED_MEMORY)
    return tempfile.mkdtemp(prefix="vig_jax_watch_")
