"""The shared memory through which worker processes pass batches."""

import shutil
import threading
import time
import weakref
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

_LONGEST_WAIT = 2.0  # seconds


def free_bytes() -> int | None:
    """Returns the free shared memory in bytes, or None if the system has no such folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


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
