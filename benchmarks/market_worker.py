"""One model in a separate process: prepared, then sampled when the parent process asks for it.

A process that dies, for example of an illegal memory access, ends only its model.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from vig_jax.bench.latency import single_calls

MEMORY = "out of memory"
"""The reason of a batch that does not fit beside other processes."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A model at an image size.

    Attributes:
        name: of one of our models, or timm's name.
        peer: run it in PyTorch.
        image_size: side in pixels.
        batch_sizes: images per call.
        compile_mode: of `torch.compile`; None: eager.
        alone: no other process uses the GPU. A batch that does not fit is halved.
    """

    name: str
    peer: bool
    image_size: int
    batch_sizes: tuple[int, ...]
    compile_mode: str | None = "reduce-overhead"
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Ready:
    """The first message of a process.

    Attributes:
        facts: device and versions.
        device_kind: the driver's name of the device.
        rows: facts of each batch that can be sampled.
        failed: the reasons of the other batches.
    """

    facts: dict[str, Any]
    device_kind: str
    rows: list[dict[str, Any]]
    failed: dict[int, str]


class Prepare(Protocol):
    """Prepares one batch of a job."""

    def __call__(self, job: Job, batch_size: int, *, check: bool) -> Any:
        """Returns a `benchmarks.candidates.Candidate`.

        Args:
            job: the model and the image size.
            batch_size: images per call.
            check: compare the results with those of float32, if the model can.

        Raises:
            Exception: the model cannot be measured, with the reason.
        """


def serve(connection: Connection, job: Job, prepare: Prepare, facts: Callable[[Job], Any]) -> None:
    """Prepares all batches of a job, sends `Ready`, and answers until it receives None.

    It is asked for "sample", the seconds of a call, or "latencies", the columns of
    `vig_jax.bench.latency.single_calls`, of a row's number. An error is sent as its text.

    Args:
        connection: to the parent process.
        job: the model.
        prepare: makes a candidate of a batch.
        facts: returns the facts and the device's name.
    """
    try:
        described = facts(job)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        connection.send(Ready({}, "", [], dict.fromkeys(job.batch_sizes, reason)))
        return
    prepared, failed = _prepared(job, prepare)
    rows = [row for row, _ in prepared]
    connection.send(Ready(described[0], described[1], rows, failed))
    calls: dict[int, int] = {}
    while (asked := connection.recv()) is not None:
        what, number, seconds = asked
        candidate = prepared[number][1]
        try:
            connection.send(
                _sample(candidate, calls, number, seconds)
                if what == "sample"
                else single_calls(candidate.run, candidate.host, sample_seconds=seconds)
            )
        except RuntimeError as error:
            connection.send(f"{type(error).__name__}: {error}")


def _prepared(
    job: Job, prepare: Prepare
) -> tuple[list[tuple[dict[str, Any], Any]], dict[int, str]]:
    """Returns row and candidate of each batch that can be sampled, and why others cannot."""
    prepared: list[tuple[dict[str, Any], Any]] = []
    failed: dict[int, str] = {}
    for asked in job.batch_sizes:
        sizes = _halved(asked) if job.alone else [asked]
        for size in sizes:
            try:
                found = prepare(job, size, check=not prepared)
            except Exception as error:  # of any library: the other models continue
                reason = f"{type(error).__name__}: {error}"
                failed[asked] = MEMORY if out_of_memory(reason) else reason
                if failed[asked] != MEMORY:
                    break
                continue
            failed.pop(asked, None)
            row = {"model": job.name, "image_size": job.image_size}
            row |= {"batch_size": size, "asked_batch_size": asked, "variant": found.variant}
            row |= {"parameters": found.parameters, "memory_bytes": found.memory_bytes}
            prepared.append((row | {"flops": found.flops}, found))
            break
    return prepared, failed


def _halved(size: int) -> Sequence[int]:
    return [size >> shift for shift in range(size.bit_length())]


def out_of_memory(reason: str) -> bool:
    """Returns whether an error of JAX or PyTorch says that memory is exhausted."""
    return "out of memory" in reason.lower() or "RESOURCE_EXHAUSTED" in reason


def _sample(candidate: Any, calls: dict[int, int], number: int, seconds: float) -> float:
    """Returns the seconds of a call; the calls of a sample are counted at the first one."""
    candidate.run(1)  # not counted: it allocates memory that other candidates freed
    if number not in calls:
        begun = time.perf_counter()
        candidate.run(1)
        calls[number] = max(1, round(seconds / max(1e-6, time.perf_counter() - begun)))
    begun = time.perf_counter()
    candidate.run(calls[number])
    return (time.perf_counter() - begun) / calls[number]


def prepare(job: Job, batch_size: int, *, check: bool) -> Any:
    """Prepares one of our models, or a timm model, for inference in bfloat16; see `Prepare`."""
    if not job.peer:
        from benchmarks.candidates import ours

        return ours(
            job.name, image_size=job.image_size, batch_size=batch_size, train=False, check=check
        )
    from benchmarks import torch_peers

    reasons = []
    for mode in dict.fromkeys((job.compile_mode, None)):  # eager if it cannot be compiled
        for found in torch_peers.candidates(
            job.name,
            image_size=job.image_size,
            batch_size=batch_size,
            train=False,
            compile_mode=mode,
            attention="flash",
            eager=mode is None,
        ):
            if not isinstance(found, str):
                return found
            reasons.append(found)
        if any(map(out_of_memory, reasons)):
            break
    gc.collect()  # the programs of other batches stay
    torch_peers.torch.cuda.empty_cache()
    raise RuntimeError("; ".join(reasons))


def facts(job: Job) -> tuple[dict[str, Any], str]:
    """Returns versions and device of a process, and the device's name."""
    if not job.peer:
        import jax

        from benchmarks import table

        return table.facts(), jax.local_devices()[0].device_kind
    import torch

    from benchmarks import torch_peers

    torch_peers.check([job.name])
    return torch_peers.versions(), torch.cuda.get_device_name()
