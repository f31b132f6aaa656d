"""The shared memory through which worker processes pass batches.

Every entry of ours in /dev/shm is named after a lock that the main process holds until it ends.
Entries without such a process were left behind when all processes were killed at once.
"""

import atexit
import contextlib
import fcntl
import functools
import logging
import multiprocessing
import os
import re
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from vig_jax.text import printable

SHARED_MEMORY = Path("/dev/shm")

logger = logging.getLogger(__name__)

_PREFIX = "vig_jax_"
_OURS = re.compile(rf"(?:sem\.)?({_PREFIX}[0-9a-f]{{8}})(\.lock|[_-].*)")  # sem.: a semaphore
_LONGEST_WAIT = 2.0  # seconds


def free_bytes() -> int | None:
    """Returns the free shared memory in bytes, or None if the system has no such folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


@functools.cache
def own_prefix() -> str | None:
    """Returns the first part of the names of this process's entries, and locks it.

    Semaphores that Python makes for worker processes from then on get such names, too.

    Returns:
        For example "vig_jax_0123abcd_"; None if the system has no such folder.
    """
    if not SHARED_MEMORY.is_dir():
        return None
    while True:
        name = f"{_PREFIX}{secrets.token_hex(4)}"
        lock = SHARED_MEMORY / f"{name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(lock, flags, 0o600)  # open until the process ends
        fcntl.flock(handle, fcntl.LOCK_EX)
        if lock.exists():  # no other process has taken it for a stale one meanwhile
            atexit.register(functools.partial(lock.unlink, missing_ok=True))
            if (
                settings := getattr(multiprocessing.current_process(), "_config", None)
            ) is not None:
                settings["semprefix"] = f"/{name}"
            return f"{name}_"
        os.close(handle)


def use_prefix(prefix: str | None) -> None:
    """Makes Python name the shared memory of this process with a prefix."""
    from multiprocessing import shared_memory

    if prefix is not None and hasattr(shared_memory, "_make_filename"):
        shared_memory._make_filename = lambda: f"/{prefix}{secrets.token_hex(6)}"


def remove_stale() -> None:
    """Removes the entries of processes of this program that were killed, and logs their size."""
    if not SHARED_MEMORY.is_dir():
        return
    entries: dict[str, list[Path]] = {}
    for path in (*SHARED_MEMORY.glob(f"{_PREFIX}*"), *SHARED_MEMORY.glob(f"sem.{_PREFIX}*")):
        if match := _OURS.fullmatch(path.name):
            entries.setdefault(match[1], []).append(path)
    removed = size = 0
    for name, paths in entries.items():
        with _stale(SHARED_MEMORY / f"{name}.lock") as stale:
            if not stale:
                continue
            for path in paths:
                with contextlib.suppress(OSError):
                    size += path.lstat().st_size
                    removed += 1
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
    if removed:
        logger.info(
            "removed %d entries (%.0f MiB) in %s that killed processes of this program had left",
            removed,
            size / 2**20,
            SHARED_MEMORY,
        )


@contextlib.contextmanager
def _stale(lock: Path) -> Iterator[bool]:
    """Yields whether no process holds a lock any more, and holds it meanwhile."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield True
        return
    except OSError:  # of another user
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = False
    except OSError:
        held = True
    try:
        yield not held
    finally:
        os.close(handle)


def describe() -> str:
    """Describes the largest entries in the shared memory, for a message about a lack of it."""
    sizes: list[tuple[int, str]] = []
    for path in SHARED_MEMORY.glob("*"):
        with contextlib.suppress(OSError):
            sizes.append((path.lstat().st_size, path.name))
    if not sizes:
        return "it is empty"
    total = sum(size for size, _ in sizes) / 2**20
    ordered = sorted(sizes, reverse=True)[:3]
    largest = ", ".join(f"{printable(name)} ({size / 2**20:.0f} MiB)" for size, name in ordered)
    return (
        f"{len(sizes)} entries of {total:.0f} MiB are in it, the largest {largest}; remove "
        "those that no program uses"
    )


def wait_until_released() -> None:
    """Waits until Grain has freed the shared memory of all batches that were dropped.

    Grain frees it in one thread, in order. If the program ends before that is done, Python's
    resource tracker complains of leaks. So this drops an array too and waits until it is freed. An
    array that this thread had to free itself proves nothing: Grain's queue was full.
    """
    from grain.multiprocessing import SharedMemoryArray  # Grain takes long to import

    this_thread = threading.get_ident()
    deadline = time.monotonic() + _LONGEST_WAIT
    freed_by: list[int] = []
    done = threading.Event()

    def note(_: object) -> None:
        freed_by.append(threading.get_ident())
        done.set()

    while time.monotonic() < deadline:
        done.clear()
        array = SharedMemoryArray((1,))
        reference = weakref.ref(array.shm, note)  # kept, so that `note` is called
        array.unlink_on_del()
        del array
        done.wait(max(0.0, deadline - time.monotonic()))
        del reference
        if freed_by and freed_by[-1] != this_thread:
            return
        time.sleep(0.001)
