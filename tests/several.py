"""Several processes of one run on this machine, as on several hosts."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port():
    for _ in range(1000):
        port = random.randint(61440, 65535)  # above those of outgoing connections
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("localhost", port))
            return port
    raise AssertionError("no port is free")


def slurm(count, index, port):
    """Returns the variables of a Slurm job; JAX computes the port from the number of the job."""
    return {
        "SLURM_JOB_ID": str(port - 61440),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": str(count),
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def start(count, *command, environments=(), cluster=None):
    """Starts the processes of a run.

    Args:
        count: of processes.
        command: after "python", for all of them.
        environments: more variables for the first processes.
        cluster: gives the variables of a cluster; None: options have the numbers.
    """
    port, processes = free_port(), []
    for index in range(count):
        options = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        options.append(f"--process_id={index}")
        if command[:2] == ("-m", "vig_jax"):
            options = [option.replace("_", "-") for option in options]
        if count == 1:
            options = []
        more = dict(enumerate(environments)).get(index, {})
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *(["--distributed"] if cluster else options)],
                cwd=ROOT,
                env={**os.environ, **more, **(cluster(count, index, port) if cluster else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def ended(processes, timeout=300):
    """Waits, and returns the status and the lines printed by each process."""
    found = []
    try:
        for process in processes:
            printed, _ = process.communicate(timeout=timeout)
            found.append((process.returncode, printed.splitlines()))
    finally:
        for process in processes:
            process.kill()
    return found
