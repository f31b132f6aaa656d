"""One command that starts several processes on this host: their places, their ends, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vig_jax.errors import ConfigError
from vig_jax.train import local_processes
from vig_jax.train.local_processes import place_among_local_processes
from vig_jax.train.supervise import LOST_STATUS

PLACED = """
import os, signal, sys, time
from vig_jax.train.local_processes import place_among_local_processes
address, index = place_among_local_processes(3)
"""

# One write each, so that lines do not mix.
PRINT = "os.write(1, f'{address} {index} {os.environ[\"JAX_LOCAL_DEVICE_IDS\"]}\\n'.encode())"


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", PLACED + code], stdout=subprocess.PIPE, text=True
    )


def test_each_has_a_number_and_a_gpu():
    process = start(PRINT)
    lines = [line.split() for line in process.communicate(timeout=60)[0].splitlines()]
    assert process.returncode == 0
    assert sorted(line[1:] for line in lines) == [["0", "0"], ["1", "1"], ["2", "2"]]
    (address,) = {line[0] for line in lines}
    assert address.startswith("127.0.0.1:")


def test_the_child_of_a_supervisor_starts_nothing():
    supervised = "from vig_jax.train.supervise import supervise\nsupervise()\n"
    process = start(supervised + "address, index = place_among_local_processes(3)\n" + PRINT)
    assert len(process.communicate(timeout=60)[0].splitlines()) == 3
    assert process.returncode == 0


def test_a_failure_is_the_status():
    with start(f"time.sleep(index / 5); sys.exit([{LOST_STATUS}, 7, 0][index])") as process:
        assert process.wait(60) == 7


def test_a_signal_reaches_all_once_and_the_end_of_the_command_ends_them():
    counts = """
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
print(os.getpid(), flush=True)
while not got:
    time.sleep(0.05)
time.sleep(0.5)
print(sum(got), flush=True)
time.sleep(100)
"""
    with start(counts) as process:
        children = [int(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline().strip() for _ in range(3)] == ["1"] * 3
        process.kill()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_too_few_gpus(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(local_processes, "Path", lambda _: tmp_path)
    monkeypatch.delenv("VIG_JAX_LOCAL_PROCESS", raising=False)
    with pytest.raises(ConfigError, match="--local_processes=3, but this host has 2 GPUs"):
        place_among_local_processes(3)
    assert "VIG_JAX_LOCAL_PROCESS" not in os.environ
