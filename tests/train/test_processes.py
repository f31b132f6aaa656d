"""Tests how a process finds its number, from options and from the variables of clusters."""

import logging
import sys

import pytest

from vig_jax.errors import ConfigError
from vig_jax.train import processes
from vig_jax.train.processes import Member, find_member
from vig_jax.train.supervise import LOST_STATUS

SLURM = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
JOBSET = {"JOBSET_NAME": "vig", "REPLICATED_JOB_NAME": "hosts", "JOB_COMPLETION_INDEX": "1"}


def barrier():
    """Returns the error of Orbax when another process dies while a checkpoint is written."""
    error = TimeoutError("Timed out while waiting for async_write_complete barrier.")
    error.__cause__ = RuntimeError("INTERNAL: Barrier failed because: Task 1 heartbeat timeout")
    return error


def find(environment, **options):
    names = ("distributed", "coordinator", "num_processes", "process_id")
    return find_member(**dict.fromkeys(names) | options, environment=environment)


def test_options():
    assert find({}) is None
    given = {"coordinator": "a:1", "num_processes": 2, "process_id": 1}
    expected = Member("a:1", 2, 1, all_devices=True)
    assert find({}, **given) == find({}, distributed=True, **given) == expected
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert find(variables, distributed=True) == expected
    assert find(variables, process_id=0).index == 0  # an option has precedence
    assert not find({"JAX_LOCAL_DEVICE_IDS": "0"}, **given).all_devices


@pytest.mark.parametrize(
    ("sizes", "all_devices"), [("1(x2)", True), ("8(x2)", False), ("1,8", False), ("1", True)]
)
def test_slurm(sizes, all_devices):
    variables = SLURM | {"SLURM_STEP_TASKS_PER_NODE": sizes}
    assert find(variables, distributed=True) == Member(None, None, None, all_devices)


def test_kubernetes():
    member = find(JOBSET, distributed=True, num_processes=2)
    assert member == Member("vig-hosts-0-0.vig:55527", 2, 1, all_devices=True)
    assert find(JOBSET | {"JAX_NUM_PROCESSES": "2"}, distributed=True) == member


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (SLURM, {}, r"Slurm starts 16 processes \(SLURM_NTASKS=16\), but --distributed is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "Open MPI starts 2 processes"),
        ({}, {"coordinator": "a"}, "--coordinator=a has no port: give HOST:PORT"),
        ({}, {"num_processes": 2, "process_id": 2}, "--process_id=2 .* must be from 0 to 1"),
        ({}, {"distributed": False, "process_id": 0}, "--nodistributed contradicts"),
        ({}, {"local_processes": 2, "process_id": 0}, "--local_processes starts all processes"),
        ({"JAX_PROCESS_ID": "x"}, {"distributed": True}, "variable JAX_PROCESS_ID=x is not a num"),
    ],
)
def test_mistakes(environment, options, message):
    with pytest.raises(ConfigError, match=message):
        find(environment, **options)


def test_a_launcher_may_start_a_process_that_is_alone():
    assert find(SLURM, distributed=False) is None
    assert find(SLURM | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (
            ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:7"),
            LOST_STATUS,
            "error: another process of the run is gone (UNKNOWN: Gloo",
        ),
        (barrier(), LOST_STATUS, "error: another process of the run is gone (Timed out"),
        (OSError("full"), 2, "error: full"),
        (RuntimeError("a defect"), 1, "Traceback"),
    ],
)
def test_an_error_ends_one_of_several_at_once(monkeypatch, capfd, error, status, printed):
    monkeypatch.setattr(processes, "supervise", lambda: None)
    monkeypatch.setattr(processes, "_join", lambda *_: None)
    monkeypatch.setattr("os._exit", sys.exit)

    def line_of(error):
        return f"error: {error}" if isinstance(error, OSError) else None

    with (
        pytest.raises(SystemExit) as ended,
        processes.joined(Member("a:1", 2, 0, all_devices=True), 10, line_of),
    ):
        raise error
    assert ended.value.code == status
    assert capfd.readouterr().err.startswith(printed)


def test_the_log_of_a_lost_process_is_left_out():
    def record(error):
        return logging.LogRecord("absl", logging.ERROR, "", 0, "in a thread", (), error)

    assert not processes._is_news(record((TimeoutError, barrier(), None)))
    assert processes._is_news(record((OSError, OSError("full"), None)))
    assert processes._is_news(record(None))
