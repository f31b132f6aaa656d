"""The plan of a conversion: which images go to which shard, and what is already done.

The order is drawn here, once: folders hold class after class, and even a reader that does not
shuffle well should see the classes mixed. The plan is stored in DST/.conversion until the
conversion is complete, with a marker for each finished shard. A conversion that was interrupted
resumes from them.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vig_jax.data.convert.images import mean_bytes
from vig_jax.data.convert.options import Options
from vig_jax.data.convert.writers import SUFFIXES
from vig_jax.data.dataset import ClassificationDataset, Split
from vig_jax.data.formats.shards import INFO_FILE
from vig_jax.errors import DataSetError
from vig_jax.files import write_json

logger = logging.getLogger(__name__)

Datasets = Mapping[Split, ClassificationDataset]

SPLIT_NAMES: dict[Split, str] = {"train": "train", "eval": "val"}
STATE_FOLDER = ".conversion"

_PLAN_FILE = f"{STATE_FOLDER}/plan.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One output file and the images that go there."""

    split: Split
    path: Path
    order: np.ndarray  # int64 positions in the data set
    marker: Path  # exists when the shard is finished


def make_plan(datasets: Datasets, options: Options) -> dict[str, Any]:
    """Returns the options and the fingerprints of the data sets, ready for JSON."""
    return {
        "options": dataclasses.asdict(options),
        "sources": {
            SPLIT_NAMES[split]: {
                "images": len(dataset),
                "fingerprint": dataset.info.fingerprint,
            }
            for split, dataset in datasets.items()
        },
    }


def check_complete(destination: Path, info: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Checks that a complete conversion followed the same plan.

    Raises:
        DataSetError: it did not.
    """
    stored = _with_defaults(info.get("plan", {}), destination, INFO_FILE)
    if stored != plan:
        raise DataSetError(f"{destination} was converted differently: {_changes(stored, plan)}")


def check_destination(destination: Path) -> None:
    """Checks that a destination is new, empty, or that of a conversion that was interrupted.

    Raises:
        DataSetError: it is not.
    """
    if not destination.exists() or (destination / STATE_FOLDER).is_dir():
        return
    if not destination.is_dir() or any(destination.iterdir()):
        raise DataSetError(f"{destination} is not an empty folder: name a new one")


def begin(destination: Path, plan: Mapping[str, Any], resume: bool) -> None:
    """Stores the plan, or checks that the stored plan is the same.

    Raises:
        DataSetError: the destination is in use, its conversion was started with another plan, or
            the stored plan is damaged.
    """
    file = destination / _PLAN_FILE
    if file.exists():
        if not resume:
            raise DataSetError(
                f"{destination} holds a conversion that was interrupted: --resume continues it; "
                "to start again, remove the folder"
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(destination, _PLAN_FILE, error) from error
        stored = _with_defaults(content, destination, _PLAN_FILE)
        if stored != plan:
            raise DataSetError(
                f"the conversion in {destination} was started differently: "
                f"{_changes(stored, plan)}; resume it with the same settings, or remove the folder"
            )
        return
    write_json(file, plan)


def _with_defaults(plan: Any, destination: Path, name: str) -> dict[str, Any]:
    """Returns the plan stored in a file, with the defaults of options that did not exist then."""
    if isinstance(plan, dict) and isinstance(options := plan.get("options", {}), dict):
        return {**plan, "options": dataclasses.asdict(Options()) | options}
    raise _damaged(destination, name, "it holds no plan")


def _damaged(destination: Path, name: str, reason: object) -> DataSetError:
    """Returns the error for a damaged file of a conversion."""
    return DataSetError(
        f"{destination / name} is damaged ({reason}); remove {destination} and convert again"
    )


def _changes(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    if stored.get("sources") != plan["sources"]:
        return "its source was another, or has changed since"
    changed = [name for name, value in plan["options"].items() if stored["options"][name] != value]
    return "with other settings of " + ", ".join(changed)


def list_shards(destination: Path, datasets: Datasets, options: Options) -> list[Shard]:
    """Returns all shards. The result depends on the plan alone."""
    orders = {split: _order(len(dataset), options) for split, dataset in datasets.items()}
    largest = max(orders, key=lambda split: len(orders[split]))
    if options.shards:
        per_shard = math.ceil(len(orders[largest]) / options.shards)
    else:
        size = mean_bytes(datasets[largest], orders[largest], options)
        per_shard = max(1, int(options.shard_size / size))
    shards = []
    for split, order in orders.items():
        total = math.ceil(len(order) / per_shard)
        for number, part in enumerate(np.array_split(order, total)):
            name = SPLIT_NAMES[split]
            path = _shard_path(destination, name, number, total, options.to)
            marker = destination / STATE_FOLDER / f"{name}-{number:05d}.done"
            shards.append(Shard(split, path, part, marker))
    return shards


def finished(shard: Shard) -> dict[str, Any] | None:
    """Returns the content of a shard's marker, or None unless the shard is there and complete."""
    try:
        result = json.loads(shard.marker.read_text(encoding="utf-8"))
        complete = shard.path.stat().st_size == result["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if complete and result["name"] == shard.path.name else None


def _shard_path(destination: Path, name: str, number: int, total: int, to: str) -> Path:
    if to == "image_folder":  # a hidden list; the images are beside it
        return destination / name / f".{number:05d}-of-{total:05d}{SUFFIXES[to]}"
    return destination / f"{name}-{number:05d}-of-{total:05d}{SUFFIXES[to]}"


def _order(length: int, options: Options) -> Int[np.ndarray, "n"]:
    order = np.arange(length)
    if options.shuffle:
        # A generator whose stream is frozen (NEP 19): resuming must find the same order.
        order = np.random.RandomState(options.seed).permutation(length)
    return order[: options.limit]
