"""A process of several, its supervisor, and how they end, in separate processes."""

import signal
import socket
import subprocess
import sys

import pytest

from vig_jax.train import stop
from vig_jax.train.stop import StopRequest
from vig_jax.train.supervise import LOST_STATUS

LOST = "error: another process of the run is gone ("
WAITS = """
import os, signal, sys, time
from vig_jax.train.supervise import supervise
supervise()
import jax
number, port, dies = map(int, sys.argv[1:])
jax.distributed.initialize(f"localhost:{port}", 2, number, heartbeat_timeout_seconds=10)
if number == dies:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)  # outside of JAX
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.multidevice
def test_a_process_that_waits_on_the_host_says_in_one_line_that_another_is_gone():
    started = {}
    for dies in (0, 1):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for number in (0, 1):
            started[dies, number] = start(WAITS, number, port, dies)
    for (dies, number), process in started.items():
        _, errors = process.communicate(timeout=90)
        (line,) = errors.splitlines()
        if number == dies:
            assert line == "error: the process was ended by SIGKILL"
            assert process.returncode == 128 + signal.SIGKILL
        else:
            assert line.startswith(LOST)
            assert line.endswith("resumes from the newest checkpoint")
            assert process.returncode == LOST_STATUS


SUPERVISED = "import os, signal, sys, time; from vig_jax.train.supervise import *; supervise(); "


@pytest.mark.parametrize(
    ("does", "status", "errors"),
    [
        ("os.write(2, b'W0101 x'); print('y', file=sys.stderr); sys.exit(7)", 7, {"W0101 x", "y"}),
        (
            "os.write(2, b'F0101 00:00:00.0 1 a.cc:1] Check failed\\n'); os.abort()",
            128 + signal.SIGABRT,
            {"a.cc:1] Check failed", "ended by SIGABRT"},
        ),
        ("leave_lost(OSError('Socket\\nclosed'))", LOST_STATUS, {f"{LOST}Socket closed)"}),
        (
            "os.write(2, b'F0101 00:00:00.0 1 a.cc:1] absl::Status: DEADLINE_EXCEEDED\\n\\n"
            "RPC: /xla.coordination.CoordinationService/RegisterTask\\n'); os.abort()",
            LOST_STATUS,
            {"error: the processes of the run have not found each other: start all"},
        ),
        (
            "os.write(2, b'F0101 00:00:00.0 1 a.cc:1] absl::Status: Socket closed\\n@ 0x7\\n'); "
            "leave_lost(OSError('heartbeat timeout'))",
            LOST_STATUS,
            {f"{LOST}heartbeat timeout)"},
        ),
    ],
)
def test_the_supervisor_ends_as_the_process_does(does, status, errors):
    process = start(SUPERVISED + does)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    for text in errors:
        assert text in printed
    if status == LOST_STATUS:
        assert len(printed.splitlines()) == 1


def test_signals_reach_the_process_and_its_words_are_not_kept_back():
    waits = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.write(2, b'hello\\n'); "
        "time.sleep(60)"
    )
    process = start(SUPERVISED + waits)
    assert process.stderr.readline() == "hello\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 5


def test_the_process_ends_with_its_supervisor():
    process = start(SUPERVISED + "print('up', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=20)  # until the child, which has the same pipes, has ended too


@pytest.fixture
def interruptible():
    """Gives SIGINT Python's handler, which a process started in the background lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_request_that_arrives_twice_at_once_is_one(monkeypatch):
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert request.signal is signal.SIGINT
        monkeypatch.setattr(stop, "_ONE_REQUEST", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_one_of_several_processes_leaves_sigterm_to_jax(monkeypatch):
    asked, passed_on = [], []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(
        stop.multihost_utils,
        "reached_preemption_sync_point",
        lambda number: asked.append(number) or number == 3,
    )
    before = signal.signal(signal.SIGTERM, lambda number, _: passed_on.append(number))
    try:
        with StopRequest() as request:
            assert [request.agreed() for _ in range(4)] == [False, False, True, False]
            assert asked == [1, 2, 3, 4]  # numbers that no process repeats
            signal.raise_signal(signal.SIGHUP)
            assert request.signal is signal.SIGHUP
            assert passed_on == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
