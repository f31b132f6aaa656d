"""One process for each GPU of this host, started by one command.

A process that runs several GPUs launches the kernels of all of them. Where kernels are short, as in
segmentation and detection, the GPUs wait for it. Processes with one GPU each launch in parallel.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from vig_jax.data.loader.workers import end_with_parent
from vig_jax.errors import ConfigError
from vig_jax.train.supervise import LOST_STATUS

_PLACE = "VIG_JAX_LOCAL_PROCESS"  # of a process started here: its parent, its number, the port


def place_among_local_processes(count: int) -> tuple[str, int]:
    """Starts this program's command `count` times and exits as they end; returns in each of them.

    Process i gets GPU i. Signals are passed on, once to each process. The processes end within
    about a second of this one.

    Args:
        count: of processes.

    Returns:
        The address of the first process, and the number of this one.

    Raises:
        ConfigError: there are fewer GPUs.
        SystemExit: in the process that has started the others. The status is 0 if all have ended
            with 0. Otherwise it is that of a process that failed by itself, if there is one.
    """
    if place := os.environ.get(_PLACE):  # of this process, or of the supervisor that started it
        parent, index, port = map(int, place.split(":"))
        if parent == os.getppid():
            threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
        return f"127.0.0.1:{port}", index
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if 0 < gpus < count:
        raise ConfigError(f"--local_processes={count}, but this host has {gpus} GPUs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [_start(index, port) for index in range(count)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    sys.exit(_status([process.wait() for process in processes]))


def _start(index: int, port: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={
            **os.environ,
            _PLACE: f"{os.getpid()}:{index}:{port}",
            "JAX_LOCAL_DEVICE_IDS": str(index),
        },
        start_new_session=True,  # Ctrl-C comes through this process, and once
    )


def _status(statuses: list[int]) -> int:
    """Returns the status that says most: of a failure, then of a lost process, then of a stop."""
    positive = [128 - status if status < 0 else status for status in statuses]
    return max(positive, key=lambda status: (status not in (0, LOST_STATUS), status))
