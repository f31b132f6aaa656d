"""Writes shards, in this process or in several."""

import concurrent.futures
import functools
import multiprocessing
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from vig_jax.data.convert.images import convert_image
from vig_jax.data.convert.options import Options
from vig_jax.data.convert.plan import SPLIT_NAMES, Datasets, Shard
from vig_jax.data.convert.writers import WRITERS
from vig_jax.data.dataset import ClassificationDataset
from vig_jax.data.loader import watch
from vig_jax.data.loader.workers import isolate
from vig_jax.errors import ConversionError, UndecodableImageError
from vig_jax.files import file_digest, write_atomically, write_json
from vig_jax.text import preview_names

Report = Callable[[int, int, list[dict[str, Any]]], None]
"""Called with new images read, bytes written and errors."""

_REPORTED_EVERY = 16  # images

IMAGE_SECONDS = 120.0
"""A worker that takes longer for one image is ended."""
_FILE_TIMES = 5.0  # of these seconds, to complete a shard and read it for its digest


class Job(NamedTuple):
    """The inputs of every worker."""

    datasets: Datasets
    options: Options
    image_seconds: float = IMAGE_SECONDS


def write_shard(shard: Shard, job: Job, report: Report) -> dict[str, Any]:
    """Writes one shard and its marker.

    Returns:
        The content of the marker: name, images, bytes, sha256, read, class_counts, errors,
        damaged.
    """
    dataset = job.datasets[shard.split]
    counts = np.zeros(dataset.num_classes, int)
    errors: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    reported = read = size = 0
    with write_atomically(shard.path) as draft:
        writer = WRITERS[job.options.to](draft, dataset.class_names, shard.path.parent)
        try:
            for read, index in enumerate(shard.order.tolist(), 1):
                watch.begin(index, list(SPLIT_NAMES).index(shard.split))
                try:
                    image = convert_image(dataset, index, job.options)
                except (UndecodableImageError, OSError) as error:
                    errors.append(_entry(shard, dataset, index, str(error)))
                else:
                    writer.add(image)
                    counts[image.label] += 1
                    size += len(image.contents)
                    if image.damage:
                        damaged.append(_entry(shard, dataset, index, image.damage))
                if read - reported >= _REPORTED_EVERY:
                    report(read - reported, size, [])
                    reported, size = read, 0
        finally:
            watch.end()
            writer.close()
        result = {
            "name": shard.path.name,
            "images": int(counts.sum()),
            "bytes": draft.stat().st_size,
            "sha256": file_digest(draft),
            "read": len(shard.order),
            "class_counts": counts.tolist(),
            "errors": errors,
            "damaged": damaged,
        }
    write_json(shard.marker, result)
    report(read - reported, size, errors)
    return result


def _entry(shard: Shard, dataset: ClassificationDataset, index: int, reason: str) -> dict[str, Any]:
    """Returns an entry of the lists of errors and of damaged images."""
    name = dataset.name_of(index)
    return {"split": SPLIT_NAMES[shard.split], "index": index, "path": name, "reason": reason}


def write_shards(
    job: Job, shards: list[Shard], workers: int, report: Report
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """Writes shards and yields each with its marker's content when it is finished.

    Args:
        job: inputs.
        shards: to write.
        workers: processes; 0: this one.
        report: called in this process.

    Raises:
        ConversionError: a worker was killed.
    """
    if workers == 0 or len(shards) <= 1:
        for shard in shards:
            yield shard, write_shard(shard, job, report)
        return
    context = multiprocessing.get_context("spawn")
    splits = list(SPLIT_NAMES)
    watched = watch.Watch(
        lambda index, group: job.datasets[splits[group]].name_of(index),
        job.image_seconds,
        silent_seconds=_FILE_TIMES * job.image_seconds,
    )
    reports = context.Queue()
    others = set(multiprocessing.active_children())
    workers = min(workers, len(shards))
    watched.expect(workers)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (job, reports, watched.folder)
    )
    try:
        waiting = {pool.submit(_write_in_worker, shard): shard for shard in shards}
        started = set(multiprocessing.active_children()) - others
        while waiting:
            with watched.awaiting():
                while not (done := _done(waiting)):
                    # The pool may not watch the processes that it started last.
                    if any(process.exitcode for process in started):
                        raise BrokenProcessPool
                    _forward(reports, report)
            _forward(reports, report)
            for future in done:
                yield waiting.pop(future), future.result()
        _forward(reports, report)
    except BaseException as error:
        in_hand = watched.in_hand_of_the_dead()
        pool.shutdown(wait=False, cancel_futures=True)
        # Their present shards will not be kept, and they ignore SIGTERM. (A broken pool has
        # forgotten its processes.)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise ConversionError(_describe_loss(watched, in_hand)) from error
        raise
    finally:
        watched.close()
    pool.shutdown()


def _done(waiting: Iterable[concurrent.futures.Future]) -> set[concurrent.futures.Future]:
    """Waits for a moment and returns the finished ones."""
    return concurrent.futures.wait(
        waiting, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
    ).done


def _describe_loss(watched: watch.Watch, in_hand: list[str]) -> str:
    """Returns the message for a worker process that has ended."""
    if watched.stuck:
        return (
            f"a worker process was ended: it had {watched.stuck[0]} in hand for too long. Remove "
            "the image; --resume continues the conversion"
        )
    if watched.silence:
        return (
            f"the worker processes were ended: {watched.silence}. Are the disks in order? --resume "
            "continues the conversion"
        )
    hint = f", with {preview_names(in_hand)} in hand" if in_hand else ""
    return (
        f"a worker process was killed{hint} (out of memory?): --resume continues the conversion, "
        "perhaps with fewer --workers"
    )


_in_worker: dict[str, Any] = {}  # the job and the queue of reports, in a worker process


def _start_worker(job: Job, reports: Any, watch_folder: str) -> None:
    isolate(functools.partial(watch.discard, watch_folder))
    watch.join(watch_folder)
    _in_worker.update(job=job, reports=reports)


def _write_in_worker(shard: Shard) -> dict[str, Any]:
    reports = _in_worker["reports"]
    return write_shard(shard, _in_worker["job"], lambda *report: reports.put(report))


def _forward(reports: Any, report: Report) -> None:
    while True:
        try:
            report(*reports.get_nowait())
        except queue.Empty:
            return
