"""Opens JAX's devices while the rest of a program is imported."""

import contextlib
import threading


def open_devices_early() -> None:
    """Starts to open the devices in another thread, which takes seconds on a GPU.

    The driver does that without Python's global lock, so imports continue beside it. An error is
    raised where the devices are first used. The end of Python waits for the thread: what it runs
    cannot be interrupted.
    """
    import jax  # here, because two threads that import it at a time could see half of it

    def open_devices() -> None:
        with contextlib.suppress(Exception):
            jax.devices()

    threading.Thread(target=open_devices, name="open-devices").start()
