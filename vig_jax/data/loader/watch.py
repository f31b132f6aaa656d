"""Notes which example each worker process has in hand, and ends workers that take too long.

Every worker writes its note into its own small file, which it maps into memory. The main
process reads the notes when a worker has died, or has been silent for too long.
"""

import contextlib
import fcntl
import itertools
import logging
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vig_jax.data.loader import shared_memory

logger = logging.getLogger(__name__)

_NOTE = struct.Struct("<qqd")  # index + 1 or 0, group, time on the system's monotonic clock
_IN_SHARED_MEMORY = re.compile(r"(vig_jax_[0-9a-f]{8})_watch_")
_INTERVAL = 0.5  # seconds between two looks at the notes
_LOOKS, _PAUSE = 20, 0.05  # for workers that have just ended; seconds
_START_SECONDS = 120.0  # at least, for a worker to import its modules and receive the data set


class _Note(NamedTuple):
    number: int  # of the example in its data set; -1: none is in hand
    group: int
    started: float  # 0: the worker has joined, but had no example yet


_in_worker: list[mmap.mmap] = []  # the note of this process, if it is a worker
_in_threads: dict[int, tuple[int, _Note]] = {}  # owner and note, by thread, in other processes
_open: weakref.WeakSet["Watch"] = weakref.WeakSet()  # those that have workers


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

    Only the time in which this process runs counts, so that a stopped one can resume.

    Args:
        name_of: returns the name of an example from its index and group.
        seconds: a worker is killed if it has one example in hand for longer than this. A thread
            cannot be ended: its example is only reported. 0: no limit.
        owner: identity of the data set, to watch the threads of this process instead of workers.
        silent_seconds: all workers are killed if none begins or ends an example for longer than
            this while their work is awaited; for one that starts, at least two minutes. None:
            `seconds`.

    Attributes:
        folder: that workers must join.
        stuck: names of examples that exceeded the limit.
        silence: what the workers did when they were killed because all were silent; else empty.
    """

    def __init__(
        self,
        name_of: Callable[[int, int], str],
        seconds: float,
        owner: int | None = None,
        silent_seconds: float | None = None,
    ):
        self._name_of = name_of
        self._seconds = seconds
        self._silent_seconds = seconds if silent_seconds is None else silent_seconds
        self._owner = owner
        self._closed = threading.Event()
        self._awaited: int | None = None  # number of the present wait
        self._waits = itertools.count()
        self._count = 0
        self._others: set[int | None] = set()
        self._workers: set[int] = set()  # as far as they have started
        self.stuck: list[str] = []
        self.silence = ""
        self.folder = "" if owner is not None else _make_folder()
        if seconds > 0:
            threading.Thread(target=self._run, daemon=True).start()

    def expect(self, count: int) -> None:
        """Takes the number of workers; must be called before they are started."""
        self._count = count
        self._others = {child.pid for child in multiprocessing.active_children()}
        _open.add(self)

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """Marks that the caller waits for what the workers make: only then must they work."""
        self._awaited = next(self._waits)
        try:
            yield
        finally:
            self._awaited = None

    def in_hand_of_the_dead(self) -> list[str]:
        """Returns the names of the examples that workers had in hand when they ended.

        Waits for a moment: the end of a worker is seen before the system has released its lock.
        """
        for _ in range(_LOOKS):
            notes = self._in_hand(self._notes()).items()
            if found := [self._name(note) for pid, note in notes if not self._is_alive(pid)]:
                return found
            time.sleep(_PAUSE)
        return []

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        _open.discard(self)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _notes(self) -> dict[int, _Note]:
        """Returns the notes by process or thread."""
        if self._owner is not None:
            every = list(_in_threads.items())
            return {thread: note for thread, (owner, note) in every if owner == self._owner}
        found = {}
        for file in Path(self.folder).glob("*"):
            contents = file.read_bytes()
            if len(contents) == _NOTE.size:
                number, *fields = _NOTE.unpack(contents)
                found[int(file.name)] = _Note(number - 1, *fields)
        return found

    @staticmethod
    def _in_hand(notes: dict[int, _Note]) -> dict[int, _Note]:
        return {where: note for where, note in notes.items() if note.number >= 0}

    def _name(self, note: _Note) -> str:
        return self._name_of(note.number, note.group)

    def _run(self) -> None:
        clock, before = 0.0, time.monotonic()
        first_seen: dict[_Note, float] = {}
        reported: set[_Note] = set()
        seen, changed = None, 0.0
        while not self._closed.wait(_INTERVAL):
            now = time.monotonic()
            clock, before = clock + min(now - before, 2 * _INTERVAL), now
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                notes = self._notes()
                self._find_workers()
                first_seen = {note: first_seen.get(note, clock) for note in notes.values()}
                for where, note in self._in_hand(notes).items():
                    if clock - first_seen[note] > self._seconds and note not in reported:
                        reported.add(note)
                        self._end_stuck(where, note)
                if seen != (seen := (self._awaited, notes)) or self._awaited is None or reported:
                    changed = clock
                elif clock - changed > self._patience(notes) and not self.silence:
                    self._end_silent(notes)

    def _find_workers(self) -> None:
        """Notes the processes that have been started since `expect`, and are not another's."""
        if len(self._workers) < self._count:
            taken = self._others.union(*(watch._workers for watch in _open if watch is not self))
            started = {child.pid for child in multiprocessing.active_children()} - taken
            self._workers |= {pid for pid in started if pid is not None}

    def _patience(self, notes: dict[int, _Note]) -> float:
        """Returns for how many seconds the workers may be silent."""
        if self._owner is None and len(_working(notes)) < self._count:
            return max(self._silent_seconds, _START_SECONDS)
        return self._silent_seconds

    def _end_stuck(self, where: int, note: _Note) -> None:
        name = self._name(note)
        if self._owner is not None:
            logger.error(
                "%s has been in hand for more than the %g s of config.data.image_seconds; with "
                "config.data.workers of at least 1 this is an error",
                name,
                self._seconds,
            )
            return
        logger.error("%s has been in hand for more than %g s", name, self._seconds)
        if self._is_alive(where):
            self.stuck.append(name)
            os.kill(where, signal.SIGKILL)

    def _end_silent(self, notes: dict[int, _Note]) -> None:
        seconds = self._patience(notes)
        if self._owner is not None:
            self.silence = f"no thread has had an image in hand for {seconds:g} s"
            logger.error("a batch is awaited, but %s", self.silence)
            return
        working, in_hand = _working(notes), self._in_hand(notes)
        counts = {
            "starting": self._count - len(working),
            "between images": len(working) - len(in_hand),
            "with an image in hand": len(in_hand),
        }
        states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        self.silence = f"nothing came from the workers for {seconds:g} s ({states})"
        logger.error("%s", self.silence)
        children = {child.pid: child for child in multiprocessing.active_children()}
        for worker in self._workers & children.keys():
            children[worker].kill()

    def _is_alive(self, pid: int) -> bool:
        """Returns whether a worker holds the lock of its note; its number may be reused later."""
        with Path(self.folder, str(pid)).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False


def _working(notes: dict[int, _Note]) -> set[int]:
    """Returns the workers that have begun an example."""
    return {worker for worker, note in notes.items() if note.started}


def _make_folder() -> str:
    if (prefix := shared_memory.own_prefix()) is not None:
        return tempfile.mkdtemp(prefix=f"{prefix}watch_", dir=shared_memory.SHARED_MEMORY)
    return tempfile.mkdtemp(prefix="vig_jax_watch_")
