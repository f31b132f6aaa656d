"""Finds the format and the splits of a data set from its files."""

from pathlib import Path

from vig_jax.data.convert.plan import SPLIT_NAMES
from vig_jax.data.convert.writers import SUFFIXES
from vig_jax.data.dataset import ClassificationDataset, Split
from vig_jax.data.datasets.registry import FILES
from vig_jax.data.formats import shards
from vig_jax.errors import DataSetError


def find_kind(path: str) -> str:
    """Returns the format of a data set, a name of `FILES`.

    Raises:
        DataSetError: there is nothing, or more than one format.
    """
    root = Path(path).expanduser()
    suffixes = {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "image_folder"}
    if not root.is_dir():
        if kind := suffixes.get(root.suffix):
            return kind
        raise DataSetError(
            f"{path} is not a folder, and its name does not end in {', '.join(suffixes)}"
        )
    found = {
        kind
        for suffix, kind in suffixes.items()
        for pattern in (f"*{suffix}", f"train/*{suffix}", f"val/*{suffix}", f"data/*{suffix}")
        if next(root.glob(pattern), None)
    }
    if len(found) > 1:
        raise DataSetError(f"{path} holds {' and '.join(sorted(found))}: choose one with --from")
    return found.pop() if found else "image_folder"


def open_splits(path: str, kind: str) -> dict[Split, ClassificationDataset]:
    """Opens the splits that a data set has; one without a validation split as "train".

    Args:
        path: the folder.
        kind: a name of `FILES`.

    Raises:
        DataSetError: there is no split, or one cannot be opened.
    """
    datasets: dict[Split, ClassificationDataset] = {}
    for split in SPLIT_NAMES:
        if _has(path, kind, split):
            datasets[split] = FILES[kind](path, split)
    if not datasets:
        datasets["train"] = FILES[kind](path, "all")
    return datasets


def _has(path: str, kind: str, split: Split) -> bool:
    if kind == "image_folder":
        return (Path(path).expanduser() / SPLIT_NAMES[split]).is_dir()
    return shards.has_shards(path, split, SUFFIXES[kind])
