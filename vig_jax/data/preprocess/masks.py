"""Masks of semantic segmentation: PNG files of labels, and the classes that labels mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vig_jax.data.preprocess.decode import open_image, undecodable
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.data.preprocess.png import decode_png
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError, UnusableMaskError
from vig_jax.text import preview_names

IGNORED = 255
"""The label of pixels that have no class."""

NO_CLASS = 254
"""The entry in a lookup table of a raw label that must not occur."""

MAX_CLASSES = 254
"""The number of classes that fit beside the two."""

# Pillow spreads gray values of 2 and 4 bits over 0 to 255.
_SPREAD = {"L;2": 85, "L;4": 17}


def decode_mask(
    mask: bytes | np.ndarray, max_pixels: int = MAX_PIXELS, *, fast: bool = True
) -> UInt8[np.ndarray, "H W"]:
    """Decodes a mask to the labels that the file stores.

    Args:
        mask: contents of a PNG file of one channel, of 1 to 16 bits, with or without a palette; or
            labels that are decoded already, uint8 [H, W]. The colours of a palette are ignored.
        max_pixels: width times height of a file; checked before it is decoded.
        fast: use numba if it is installed. The labels are the same.

    Raises:
        UnusableMaskError: not a PNG, of several channels, or with values above 255.
        UndecodableImageError: truncated, empty, or beyond the limit.
        ValueError: an array that is not uint8 [H, W].
    """
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
            raise ValueError(f"a mask must be uint8 [H, W]; this is {mask.dtype} {mask.shape}")
        return mask
    if fast and (decoded := decode_png(mask, max_pixels)) is not None:
        return decoded
    try:
        opened = open_image(mask, max_pixels)
        if opened.format != "PNG":
            raise UnusableMaskError(
                f"a mask must be a PNG file; this is {opened.format}, which may alter labels"
            )
        if opened.mode not in ("1", "L", "P") and not opened.mode.startswith("I"):
            raise UnusableMaskError(
                f"a mask has one channel of labels; this one has colours (mode {opened.mode}): "
                "convert each colour to its index in the palette"
            )
        tiles = getattr(opened, "tile", ())  # how the pixels are stored, until they are read
        spread = _SPREAD.get(str(tiles[0].args), 1) if tiles else 1
        labels = np.asarray(opened)
    except UndecodableImageError:
        raise
    except Exception as error:  # of many kinds, as in `decode`
        raise undecodable(mask, error) from error
    if labels.dtype not in (np.uint8, np.bool_) and labels.max() > 255:
        raise UnusableMaskError(f"the mask has the label {labels.max()}; labels must be 0 to 255")
    labels = labels.astype(np.uint8, copy=False)
    return labels // np.uint8(spread) if spread > 1 else labels


def label_lookup(metadata: Mapping[str, Any], reduce_zero_label: bool) -> UInt8[np.ndarray, "256"]:
    """Returns the class of every raw label: `IGNORED` or `NO_CLASS` where it has none.

    Zero is reduced first: label 0 is ignored and label k becomes k - 1. The raw labels of the data
    set are those after this step.

    Args:
        metadata: of the data set, `DatasetInfo.metadata`. `class_names`; if `raw_labels` is there,
            it has the raw label of each class, else label k is class k; `ignored_labels` are other
            labels without a class; `largest_label` is the largest one in the files, if known.
        reduce_zero_label: from `config.task`.

    Raises:
        DataSetError: too many classes, or raw labels that are out of range or not unique.
        ConfigError: the setting contradicts the labels of the data set.
    """
    names: Sequence[str] = metadata["class_names"]
    raw_labels = list(metadata.get("raw_labels") or range(len(names)))
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataSetError(f"{len(names)} classes; a mask of 8 bits has 1 to {MAX_CLASSES}")
    wrong = [label for label in raw_labels if not 0 <= label < IGNORED]
    if wrong or len(set(raw_labels)) != len(names) or len(raw_labels) != len(names):
        raise DataSetError(
            f"{len(names)} classes have the raw labels {preview_names(raw_labels, 10)}; each class "
            f"must have its own, from 0 to {IGNORED - 1}"
        )
    after_zero = np.full(256, NO_CLASS, np.uint8)
    after_zero[raw_labels] = np.arange(len(names), dtype=np.uint8)
    after_zero[[IGNORED, *metadata.get("ignored_labels", ())]] = IGNORED
    lookup = after_zero
    if reduce_zero_label:
        lookup = np.concatenate([after_zero[[IGNORED]], after_zero[:254], after_zero[[IGNORED]]])
    largest = metadata.get("largest_label")
    seen = metadata.get("seen_label", largest)
    if seen is not None and lookup[seen] == NO_CLASS:
        raise ConfigError(
            f"config.task.reduce_zero_label={reduce_zero_label}, and the masks have the label "
            f"{seen}, but there are {len(names)} class names: set reduce_zero_label="
            f"{not reduce_zero_label}, or name one class per label in classes.txt"
        )
    if largest is not None and reduce_zero_label and largest == len(names) - 1 > 0:
        raise ConfigError(
            f"config.task.reduce_zero_label=True leaves the labels 1 to {largest}, but there are "
            f"{len(names)} class names: write the names of labels 1, 2, ... to classes.txt, or set "
            "reduce_zero_label=False"
        )
    return lookup


def zero_is_no_class(metadata: Mapping[str, Any]) -> bool:
    """Returns whether masks have one label more than there are class names, as those of ADE20K."""
    labels = (metadata.get(name) for name in ("largest_label", "seen_label"))
    return len(metadata["class_names"]) in labels


def check_labels(labels: UInt8[np.ndarray, "H W"], lookup: UInt8[np.ndarray, "256"]) -> None:
    """Checks all pixels of a mask.

    Args:
        labels: raw.
        lookup: from `label_lookup`.

    Raises:
        UnusableMaskError: a label has no class.
        UndecodableImageError: all pixels are ignored.
    """
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    without = [int(label) for label in found if lookup[label] == NO_CLASS]
    if without:
        known = np.flatnonzero(lookup < NO_CLASS)
        raise UnusableMaskError(
            f"the mask has the label {preview_names(without)}, which has no class (classes have "
            f"labels from {known[0]} to {known[-1]}, and 255 is ignored)"
        )
    if (lookup[found] == IGNORED).all():
        raise UndecodableImageError("all pixels of the mask are ignored")


def check_same_size(size: tuple[int, int], mask: UInt8[np.ndarray, "H W"]) -> None:
    """Checks that a mask has the width and height of its image.

    Raises:
        UnusableMaskError: it has not.
    """
    if size != mask.shape[::-1]:
        raise UnusableMaskError(
            f"the image has {size[0]} x {size[1]} pixels, its mask {mask.shape[1]} x "
            f"{mask.shape[0]}: they must have the same size (EXIF orientation is not applied)"
        )
