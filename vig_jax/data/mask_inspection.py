"""Inspects a data set of masks: sizes, formats, frequencies of the classes, faulty pairs."""

import collections
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vig_jax.data.formats.segmentation_folder import SegmentationFolder
from vig_jax.data.inspection import in_threads, spread, summary
from vig_jax.data.preprocess.decode import damage_of, decode, read_header
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.data.preprocess.masks import (
    IGNORED,
    check_labels,
    check_same_size,
    decode_mask,
    label_lookup,
    zero_is_no_class,
)
from vig_jax.errors import UndecodableImageError


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Facts about one image and its mask."""

    index: int
    bytes: int  # of both files
    error: str | None = None
    damage: str | None = None  # of an image that can be decoded
    kind: str = ""  # formats and modes of both
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    counts: Int[np.ndarray, "256"] | None = None  # pixels by class


def inspect_masks(
    dataset: SegmentationFolder,
    *,
    reduce_zero_label: bool = False,
    sample: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Decodes a split and describes it.

    Args:
        dataset: the split.
        reduce_zero_label: label 0 is no class, and label k is class k - 1. This is assumed if there
            is one label more than there are class names, as in ADE20K.
        sample: inspect this number of images, spread evenly; None: all.
        max_pixels: larger images, by width times height, are faulty.

    Returns:
        A dictionary ready for JSON: images, inspected, reduce_zero_label, classes {name: {"pixels":
        share of the pixels with a class, "images": number of images with the class}}, ignored
        (share of all pixels), width, height and bytes {min, median, mean, max}, formats {name:
        count}, and faulty and damaged (but decodable) [{index, path, mask, reason}].
    """
    metadata = dataset.info.metadata
    names = metadata["class_names"]
    reduce = reduce_zero_label or zero_is_no_class(metadata)
    lookup = label_lookup(metadata, reduce)
    indices = spread(len(dataset), sample or len(dataset))
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    facts = []
    for pair in in_threads(lambda index: _look(dataset, index, lookup, max_pixels), indices):
        if pair.counts is not None:
            pixels += pair.counts
            images += pair.counts > 0
        facts.append(dataclasses.replace(pair, counts=None))
    good = [pair for pair in facts if pair.error is None]
    labelled = max(1, int(pixels[: len(names)].sum()))
    return {
        "images": len(dataset),
        "inspected": len(facts),
        "reduce_zero_label": reduce,
        "classes": {
            name: {"pixels": pixels[label].item() / labelled, "images": images[label].item()}
            for label, name in enumerate(names)
        },
        "ignored": pixels[IGNORED].item() / max(1, pixels.sum().item()),
        "width": summary([pair.size[0] for pair in good]),
        "height": summary([pair.size[1] for pair in good]),
        "bytes": summary([pair.bytes for pair in facts]),
        "formats": dict(collections.Counter(pair.kind for pair in good).most_common()),
        "faulty": [_entry(dataset, pair, pair.error) for pair in facts if pair.error],
        "damaged": [_entry(dataset, pair, pair.damage) for pair in facts if pair.damage],
    }


def _look(
    dataset: SegmentationFolder, index: int, lookup: UInt8[np.ndarray, "256"], max_pixels: int
) -> _Pair:
    """Decodes an image and its mask."""
    size = 0
    try:
        example = dataset[index]
        image, mask = example["image"], example["mask"]
        size = len(image) + len(mask)
        headers = read_header(image, max_pixels), read_header(mask, max_pixels)
        decoded = decode(image, max_pixels)
        labels = decode_mask(mask, max_pixels)
        check_same_size(decoded.size, labels)
        check_labels(labels, lookup)
    except (UndecodableImageError, OSError) as error:
        return _Pair(index, size, str(error))
    return _Pair(
        index,
        size,
        damage=damage_of(image),
        kind=" + ".join(f"{header.format} {header.mode}" for header in headers),
        size=decoded.size,
        counts=np.bincount(lookup[labels].ravel(), minlength=256),
    )


def _entry(dataset: SegmentationFolder, pair: _Pair, reason: str | None) -> dict[str, Any]:
    return {
        "index": pair.index,
        "path": dataset.name_of(pair.index),
        "mask": dataset.mask_name_of(pair.index),
        "reason": reason,
    }
