"""Checks a converted data set against its `info.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vig_jax.data.dataset import Split
from vig_jax.data.datasets.registry import FILES
from vig_jax.data.formats import shards
from vig_jax.data.preprocess.decode import decode
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.errors import DataSetError, UndecodableImageError
from vig_jax.files import file_digest

_DECODED = 16  # images per shard
_LISTED = 20  # problems in the message


def verify(destination: Path) -> int:
    """Compares a converted data set with its `info.json`, and decodes some images of each shard.

    Args:
        destination: the folder.

    Returns:
        The number of images.

    Raises:
        DataSetError: lists what is wrong.
    """
    info = shards.read_info(destination)
    if info is None:
        raise DataSetError(f"{destination} has no {shards.INFO_FILE} of `vig data convert`")
    problems: list[str] = []
    for name, split in info["splits"].items():
        in_shards = sum(shard["images"] for shard in split["shards"])
        for shard in tqdm(split["shards"], f"verify {name}", unit="shard", disable=None):
            problems += _check_shard(destination, info["layout"], name, shard)
        if in_shards != split["images"]:
            problems.append(f"{name}: {in_shards} images in the shards, {split['images']} in all")
        if not problems:
            problems += _decode_some(destination, info, name)
    if problems:
        more = f"\nand {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise DataSetError(f"{destination} is damaged:\n" + "\n".join(problems[:_LISTED]) + more)
    return sum(split["images"] for split in info["splits"].values())


def _check_shard(destination: Path, layout: str, name: str, shard: Mapping[str, Any]) -> list[str]:
    path = destination / shard["name"]
    if layout == "image_folder":
        path = destination / name / shard["name"]
    if not path.is_file():
        return [f"{path} is missing"]
    if path.stat().st_size != shard["bytes"] or file_digest(path) != shard["sha256"]:
        return [f"{path} is not what was written (size or SHA-256)"]
    return _check_listed(path) if layout == "image_folder" else []


def _check_listed(path: Path) -> list[str]:
    """Compares the files of a folder with their list."""
    problems = []
    for line in path.read_text("utf-8", "surrogateescape").splitlines():
        digest, _, name = line.partition("  ")
        file = path.parent / name
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file_digest(file) != digest:
            problems.append(f"{file} is not what was written (SHA-256)")
    return problems


def _decode_some(destination: Path, info: Mapping[str, Any], name: str) -> list[str]:
    split: Split = "train" if name == "train" else "eval"
    dataset = FILES[info["layout"]](str(destination), split)
    expected = info["splits"][name]
    problems = []
    if len(dataset) != expected["images"]:
        problems.append(f"{name} has {len(dataset)} images instead of {expected['images']}")
    count = _DECODED * len(expected["shards"])
    limit = info.get("plan", {}).get("options", {}).get("max_image_pixels", MAX_PIXELS)
    for index in np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist():
        try:
            decode(dataset[index]["image"], limit)
        except (UndecodableImageError, OSError) as error:
            problems.append(f"{dataset.name_of(index)}: {error}")
    return problems
