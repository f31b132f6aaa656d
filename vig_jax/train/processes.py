"""One process of a run on several: which one it is, and how it joins the others.

The coordinator's address, the number of processes and the number of this one come from options, or
from the variables of JAX or of a cluster. JAX knows Slurm, Open MPI and cloud TPUs. Its start-up
for Kubernetes needs the package `kubernetes` and the right to read pods. The variables of an
Indexed Job and of a JobSet, which are read here, need neither.
"""

import contextlib
import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from vig_jax.errors import ConfigError, is_lost_process
from vig_jax.train.local_processes import place_among_local_processes
from vig_jax.train.supervise import leave_lost, supervise

OPTIONS = {
    "distributed": "Set on every host of a run on several, where Slurm, Open MPI, Kubernetes or a "
    "cloud TPU sets variables that JAX knows; elsewhere give the next three.",
    "coordinator": "HOST:PORT of the first process, with any free port; the same on all hosts.",
    "num_processes": "Number of processes of the run, usually one per host.",
    "process_id": "Number of this process, from 0.",
    "local_processes": "Number of processes to start on this host, each with one of its GPUs. "
    "Several short kernels are launched at the same time then, which is faster in segmentation and "
    "detection. Instead of the options above.",
}
"""The options of a command that can run on several processes, and their help."""
START_SECONDS = 300
"""The time in which all processes must have started."""

# Variables with the number of processes that a launcher starts.
_LAUNCHERS = {"SLURM_NTASKS": "Slurm", "OMPI_COMM_WORLD_SIZE": "Open MPI", "PMI_SIZE": "MPI"}
# Variables with the number of processes on a host; Slurm's is a list such as 8(x2),4.
_ON_HOST = ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")
_KUBERNETES_PORT = 55527  # any; this is the one that JAX takes


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of several. What is None, JAX finds out from the cluster's variables.

    Attributes:
        coordinator: HOST:PORT of the first process.
        count: number of processes.
        index: number of this process.
        all_devices: whether it uses all devices of its host. Otherwise JAX decides: one device per
            process under Slurm and Open MPI.
    """

    coordinator: str | None
    count: int | None
    index: int | None
    all_devices: bool


def find_member(
    *,
    distributed: bool | None,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    local_processes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Member | None:
    """Returns which process this is; None if it is the only one.

    With `local_processes` it starts them, and returns in each of them.

    Args:
        distributed: None: the other options decide.
        coordinator: HOST:PORT.
        num_processes: of the run.
        process_id: from 0.
        local_processes: number of processes to start on this host, one per GPU.
        environment: by default that of the process.

    Raises:
        ConfigError: the options contradict each other, or a launcher starts several processes and
            no option says that they belong together.
    """
    env = os.environ if environment is None else environment
    given = [coordinator, num_processes, process_id] != [None] * 3
    if local_processes:
        if given or distributed:
            raise ConfigError(
                "--local_processes starts all processes of the run, on this host: leave out "
                "--distributed, --coordinator, --num_processes and --process_id"
            )
        address, number = place_among_local_processes(local_processes)
        return Member(address, local_processes, number, all_devices=False)
    if not distributed and not given:
        if distributed is None:
            _check_launcher(env)
        return None
    if distributed is False:
        raise ConfigError(
            "--nodistributed contradicts --coordinator, --num_processes and --process_id: leave "
            "either out"
        )
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS") or _address_of_job_set(env)
    count = _number(num_processes, env, "JAX_NUM_PROCESSES")
    index = _number(process_id, env, "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator={coordinator} has no port: give HOST:PORT")
    if count is not None and index is not None and not 0 <= index < count:
        raise ConfigError(
            f"--process_id={index} of --num_processes={count}: it must be from 0 to {count - 1}"
        )
    on_host = [
        int(size) for name in _ON_HOST for size in re.findall(r"(?:^|,)(\d+)", env.get(name, ""))
    ]
    several_on_host = max(on_host, default=1) > 1 or "JAX_LOCAL_DEVICE_IDS" in env
    return Member(coordinator, count, index, all_devices=not several_on_host)


def _check_launcher(env: Mapping[str, str]) -> None:
    """Refuses to run whole trainings side by side in one workdir."""
    for variable, launcher in _LAUNCHERS.items():
        count = env.get(variable, "")
        if count.isdigit() and int(count) > 1:
            raise ConfigError(
                f"{launcher} starts {count} processes ({variable}={count}), but --distributed is "
                "not set: each would run alone, with the same files. Set --distributed, or "
                "--nodistributed if this is the only process"
            )


def _number(given: int | None, env: Mapping[str, str], *variables: str) -> int | None:
    """Returns the number of an option, or else of the first variable that is set."""
    for name in variables if given is None else ():
        if text := env.get(name):
            if not text.isdigit():
                raise ConfigError(f"the environment variable {name}={text} is not a number")
            return int(text)
    return given


def _address_of_job_set(env: Mapping[str, str]) -> str | None:
    """Returns the address of the first pod of a JobSet, by the names that JobSet gives to pods."""
    jobs, name = env.get("JOBSET_NAME"), env.get("REPLICATED_JOB_NAME")
    return f"{jobs}-{name}-0-0.{jobs}:{_KUBERNETES_PORT}" if jobs and name else None


@contextlib.contextmanager
def joined(
    member: Member, lost_after: int, line_of: Callable[[Exception], str | None]
) -> Iterator[None]:
    """Makes this process, or a child of it, one of several while the block runs.

    The block runs in the child only, see `supervise`. An error in it ends the child at once:
    leaving in order waits for the other processes, and those wait for this one.

    Args:
        member: this process.
        lost_after: seconds without a sign of life after which a process counts as lost and JAX ends
            the others.
        line_of: returns what to print for an error; None: its traceback.

    Raises:
        SystemExit: in the supervisor, with the status of the child.
    """
    supervise()
    for handler in logging.root.handlers:
        handler.addFilter(_is_news)
    try:
        _join(member, lost_after)
        yield
    except Exception as error:
        _leave(error, line_of(error))


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for the log of an error of a lost process, which ends this one in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not is_lost_process(error)


def _join(member: Member, lost_after: int) -> None:
    """Connects to the other processes; JAX ends this one if they do not come in time."""
    import jax

    if member.coordinator and member.count:
        ours = f"process {member.index} of {member.count}"
        print(f"{ours}, waiting for all at {member.coordinator} ...", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            member.coordinator,
            num_processes=member.count,
            process_id=member.index,
            local_device_ids=[] if member.all_devices else None,  # empty: not restricted
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=lost_after,
        )
    except ValueError as error:
        raise ConfigError(
            f"this process does not know the others ({error}) Outside of Slurm, Open MPI, a JobSet "
            "and cloud TPUs, give --coordinator=HOST:PORT, the number of processes and the number "
            "of this one"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"{member.coordinator or 'the port of the coordinator'} cannot be used ({error}): "
            "choose another port with --coordinator=HOST:PORT on all hosts"
        ) from error


def _leave(error: Exception, line: str | None) -> NoReturn:
    """Prints an error and ends this process at once; the others see that it is gone."""
    if is_lost_process(error):
        leave_lost(error)
    print(line or traceback.format_exc(), file=sys.stderr, flush=True)
    os._exit(2 if line else 1)
