"""Converts the splits of a data set, in shards and by several processes.

DST/train-00000-of-00008.arrayrecord  ...  DST/info.json  DST/errors.jsonl, damaged.jsonl (if any)
DST/.conversion/plan.json, *.done     until the conversion is complete
"""

import collections
import json
import logging
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.data.convert import plan as plans
from vig_jax.data.convert.images import SAMPLE, mean_bytes
from vig_jax.data.convert.options import Options
from vig_jax.data.convert.plan import SPLIT_NAMES, Datasets, Shard
from vig_jax.data.convert.progress import Progress
from vig_jax.data.convert.shard import Job, write_shards
from vig_jax.data.convert.writers import LIBRARIES, class_folders
from vig_jax.data.dataset import Split
from vig_jax.data.formats import shards
from vig_jax.errors import ConversionError, DataSetError
from vig_jax.files import check_utf8, write_json, write_text
from vig_jax.folder_lock import folder_lock

logger = logging.getLogger(__name__)

ERRORS_FILE = "errors.jsonl"
DAMAGED_FILE = "damaged.jsonl"  # images that were converted, and decode in spite of damage


def convert(
    datasets: Datasets,
    destination: Path,
    options: Options,
    *,
    workers: int = 0,
    resume: bool = False,
    max_errors: int = 0,
) -> dict[str, Any]:
    """Writes the splits of a data set to a folder.

    Args:
        datasets: by split, with the same classes.
        destination: a new or empty folder, or, to resume, the folder of an interrupted conversion.
        options: format, shards, resizing, order.
        workers: processes; 0: this one.
        resume: continue an interrupted conversion.
        max_errors: images that may be left out because they cannot be read or decoded.

    Returns:
        The content of `info.json`.

    Raises:
        DataSetError: the destination is in use, or its conversion had other options or another
            source.
        ConversionError: too many images in `errors.jsonl`, a full disk, or a killed worker.
            Finished shards are kept, so the conversion can be resumed.
        FolderInUseError: another process converts to the destination.
        OSError: the destination cannot be written.
        ConfigError: an option is out of range.
    """
    options.check()
    if library := LIBRARIES.get(options.to):
        check_utf8(destination, library)
    names = {dataset.class_names for dataset in datasets.values()}
    if len(names) != 1:
        raise DataSetError("the splits differ in their classes" if names else "nothing to convert")
    state = destination / plans.STATE_FOLDER
    plan = plans.make_plan(datasets, options)
    if (info := shards.read_info(destination)) is not None and resume and not state.exists():
        plans.check_complete(destination, info, plan)
        logger.info("%s is complete", destination)
        return info
    plans.check_destination(destination)
    state.mkdir(parents=True, exist_ok=True)
    with folder_lock(state, "DST"):
        plans.begin(destination, plan, resume)
        (class_names,) = names
        if options.to == "image_folder":
            for split in datasets:
                for folder in class_folders(class_names):
                    (destination / SPLIT_NAMES[split] / folder).mkdir(parents=True, exist_ok=True)
        results = _write(datasets, destination, options, workers, max_errors)
        _list_damaged(destination, results)
        info = _make_info(class_names, options, plan, results)
        write_json(destination / shards.INFO_FILE, info)
        shutil.rmtree(state)
    return info


def _list_damaged(destination: Path, results: list[tuple[Shard, dict[str, Any]]]) -> None:
    """Writes the list of damaged images, if there are any, and logs their number."""
    damaged = [entry for _, result in results for entry in result.get("damaged", [])]
    if damaged:
        file = destination / DAMAGED_FILE
        write_text(file, "".join(json.dumps(entry) + "\n" for entry in damaged))
        logger.warning("%d images are damaged, but decode: listed in %s", len(damaged), file)


def _write(
    datasets: Datasets, destination: Path, options: Options, workers: int, max_errors: int
) -> list[tuple[Shard, dict[str, Any]]]:
    """Writes the shards that are not finished; returns all shards with their markers' content."""
    all_shards = plans.list_shards(destination, datasets, options)
    done = {
        shard.path: result for shard in all_shards if (result := plans.finished(shard)) is not None
    }
    total = sum(len(shard.order) for shard in all_shards)
    with Progress(destination / ERRORS_FILE, max_errors, total) as progress:
        for result in done.values():
            progress.update(result["read"], 0, result["errors"], resumed=True)
        left = [shard for shard in all_shards if shard.path not in done]
        if done:
            logger.info("%d of %d shards are finished", len(done), len(all_shards))
        if options.limit is None or options.limit > SAMPLE:
            _check_space(destination, datasets, options, left)
        for shard, result in write_shards(Job(datasets, options), left, workers, progress.update):
            done[shard.path] = result
    return [(shard, done[shard.path]) for shard in all_shards]


def _check_space(
    destination: Path, datasets: Datasets, options: Options, left: list[Shard]
) -> None:
    """Raises ConversionError if the disk is too small: it fails now rather than in an hour."""
    if not left:
        return
    orders: dict[Split, list[np.ndarray]] = collections.defaultdict(list)
    for shard in left:
        orders[shard.split].append(shard.order)
    largest = max(orders, key=lambda split: sum(map(len, orders[split])))
    mean = mean_bytes(datasets[largest], np.concatenate(orders[largest]), options)
    needed = mean * sum(len(shard.order) for shard in left)
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise ConversionError(
            f"the conversion needs about {needed / 1e9:.1f} GB in {destination}, but "
            f"{free / 1e9:.1f} GB are free: make room and --resume, or see --resize-short"
        )


def _make_info(
    class_names: tuple[str, ...],
    options: Options,
    plan: Mapping[str, Any],
    results: list[tuple[Shard, dict[str, Any]]],
) -> dict[str, Any]:
    by_split: dict[Split, list[dict[str, Any]]] = collections.defaultdict(list)
    for shard, result in results:
        by_split[shard.split].append(result)
    info: dict[str, Any] = {
        "format": shards.FORMAT,
        "layout": options.to,
        "class_names": list(class_names),
        "splits": {
            SPLIT_NAMES[split]: {
                "images": sum(r["images"] for r in some),
                "left_out": sum(len(r["errors"]) for r in some),
                "damaged": sum(len(r.get("damaged", [])) for r in some),
                "class_counts": np.sum([r["class_counts"] for r in some], axis=0).tolist(),
                "shards": [
                    {key: r[key] for key in ("name", "images", "bytes", "sha256")} for r in some
                ],
            }
            for split, some in by_split.items()
        },
        "plan": dict(plan),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pillow", "numpy", "array_record")},
        },
    }
    if options.to == "image_folder":
        info["class_folders"] = class_folders(class_names)
    return info
