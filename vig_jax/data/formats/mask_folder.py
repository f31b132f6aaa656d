"""A folder of images and a folder of masks, PNG files of labels with the same names.

    PATH/images/train/*.jpg    PATH/annotations/train/*.png
    PATH/images/val/*.jpg      PATH/annotations/val/*.png

The folders may also be called `masks`, `training` and `validation`. Folders inside them are read
too. Without splits (and with config.data.split="random") the files are PATH/images/*.jpg and
PATH/annotations/*.png. PATH/classes.txt names the classes, one per line by label, perhaps with a
colour: "wall #787878". Without it, the classes are the labels 0 to the largest in the masks of
the training folder, which are then all read. Label 255 marks pixels without a class.
"""

import concurrent.futures
import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Split
from vig_jax.data.formats.image_folder import find_image_files
from vig_jax.data.formats.label_table import LabelTable, colours
from vig_jax.data.formats.segmentation_folder import (
    CHECKED_PAIRS,
    Layout,
    SegmentationFolder,
    existing_folder,
    find_pairs,
    read_table,
)
from vig_jax.data.formats.shards import CLASSES_FILE
from vig_jax.data.preprocess.masks import IGNORED, MAX_CLASSES, decode_mask
from vig_jax.errors import DataSetError, UndecodableImageError, UnusableMaskError
from vig_jax.files import read_regular_file
from vig_jax.text import printable

logger = logging.getLogger(__name__)

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "eval": ("val", "validation"),
}
_MASKS = ("annotations", "masks")
_LAYOUT = """
The expected layout is

    {path}/
      classes.txt   one name per line, by label (optional)
      images/
        train/  001.jpg  002.jpg  ...
        val/    ...
      annotations/
        train/  001.png  002.png  ...
        val/    ...

The masks are PNG files of labels. For folders without train and val:
--config.data.split=random --config.data.val_fraction=0.1."""


def open_mask_folder(data: DataConfig, split: Split) -> SegmentationFolder:
    """Opens a split of a folder of images and a folder of masks.

    Args:
        data: `path`; with `split="random"` the images of the folder, or of its training folder,
            are divided here: `val_fraction` of them are held out, drawn with `split_seed`.
        split: "train" or "eval".

    Raises:
        DataSetError: a folder is missing, or the layout is another.
    """
    root = existing_folder(data.path, _LAYOUT)
    masks = next((name for name in _MASKS if (root / name).is_dir()), None)
    if masks is None or not (root / "images").is_dir():
        raise DataSetError(
            f"{root} has no folder images or no folder {' or '.join(_MASKS)}."
            f"{_LAYOUT.format(path=data.path)}"
        )
    names = {part: _split_folder(root, masks, part) for part in _SPLITS}
    folder = names[split]
    if data.split == "random":
        if names["eval"] is not None:
            raise DataSetError(
                f"{root / 'images' / names['eval']} is a validation split already: leave "
                "config.data.split at 'given', or remove it"
            )
        folder = names["train"] or ""
    if folder is None:
        raise DataSetError(
            f"{root / 'images'} and {root / masks} have no folder {' or '.join(_SPLITS[split])}."
            f"{_LAYOUT.format(path=data.path)}"
        )
    layout = Layout(f"images/{folder}".rstrip("/"), f"{masks}/{folder}".rstrip("/"))
    images, settings = find_pairs(root, layout), ""
    table = _table(root, root / masks / (names["train"] or ""))
    if data.split == "random":
        settings = f"random {split} {data.val_fraction!r} {data.split_seed}"
        train, held_out = random_positions(len(images), data.val_fraction, data.split_seed)
        images = [images[i] for i in (train if split == "train" else held_out)]
    return SegmentationFolder(root, layout, images, table, settings)


def _split_folder(root: Path, masks: str, split: Split) -> str | None:
    """Returns the name of a split's folder; None if there is none."""
    found = (n for n in _SPLITS[split] if all((root / f / n).is_dir() for f in ("images", masks)))
    return next(found, None)


def _table(root: Path, folder: Path) -> LabelTable:
    """Returns the classes that classes.txt names, or those that the masks of a folder have."""
    files = tuple(name for name in find_image_files(folder) if name.endswith(".png"))
    if (named := read_table(root)) is not None:
        some = np.random.RandomState(0).permutation(len(files))[:CHECKED_PAIRS].tolist()
        # One more than the names: label 0 must be no class. More than that is a fault of a mask.
        one_more = len(named.class_names)
        has_more = _largest_label(folder, tuple(files[i] for i in some)) == one_more
        return dataclasses.replace(named, seen_label=one_more) if has_more else named
    largest = _largest_label(folder, files, strict=True)
    if not 0 <= largest < MAX_CLASSES:
        raise DataSetError(
            f"the largest label of {len(files)} masks in {folder} is {largest}; it must be from 0 "
            f"to {MAX_CLASSES - 1}, with {IGNORED} for pixels without a class"
        )
    logger.info(
        "%s: without a file %s, the classes are the labels 0 to %d of %d masks",
        printable(str(folder)),
        CLASSES_FILE,
        largest,
        len(files),
    )
    names = tuple(str(label) for label in range(largest + 1))
    return LabelTable(names, colours(len(names)), largest_label=largest)


@functools.lru_cache(maxsize=1)  # both splits of a run have the classes of the training masks
def _largest_label(folder: Path, masks: tuple[str, ...], strict: bool = False) -> int:
    """Returns the largest label of some masks, except 255; -1 if there is none.

    Undecodable files are skipped, and so are files that are not masks unless `strict` is true.
    """

    def largest(mask: str) -> int:
        try:
            labels = decode_mask(read_regular_file(folder / mask))
        except (UndecodableImageError, OSError) as error:
            if strict and isinstance(error, UnusableMaskError):
                raise DataSetError(f"{printable(str(folder / mask))}: {error}") from error
            return -1
        return int(np.max(labels.astype(np.int16), initial=-1, where=labels != IGNORED))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return max(pool.map(largest, masks), default=-1)


def random_positions(length: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the positions to train on and those to hold out, always the same; both ascending.

    Args:
        length: number of images.
        fraction: to hold out, above 0; rounded to the nearest number, halves up, at least one.
        seed: of the draw.

    Raises:
        DataSetError: the fraction is 0, or nothing would be left to train on.
    """
    if not 0 < fraction < 1:
        raise DataSetError(f"config.data.val_fraction={fraction} must be between 0 and 1")
    if length < 2:
        raise DataSetError(f"{length} image cannot be divided: at least 2 are needed")
    count = min(max(1, int(length * fraction + 0.5)), length - 1)
    order = np.random.RandomState(seed).permutation(length)  # a frozen stream (NEP 19)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())
