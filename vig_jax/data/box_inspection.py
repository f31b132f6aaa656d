"""Inspects a data set of boxes: sizes, formats, boxes of the classes, faults of annotations."""

import collections
import dataclasses
from typing import Any

from vig_jax.data.formats.coco import CocoDataset
from vig_jax.data.inspection import in_threads, spread, summary
from vig_jax.data.preprocess.decode import damage_of, decode, read_header
from vig_jax.data.preprocess.detection import check_annotated_size
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.errors import UndecodableImageError


@dataclasses.dataclass(frozen=True)
class _Image:
    """Facts about one image."""

    index: int
    bytes: int
    error: str | None = None
    damage: str | None = None  # of an image that can be decoded
    kind: str = ""  # format and mode
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    boxes: int = 0  # usable ones


def inspect_boxes(
    dataset: CocoDataset,
    *,
    most_boxes: int = 100,
    sample: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Decodes a split and describes it. Annotations are looked at in all images.

    Args:
        dataset: the split.
        most_boxes: of a training image; `config.task.max_boxes`.
        sample: decode this number of images, spread evenly; None: all.
        max_pixels: larger images, by width times height, are faulty.

    Returns:
        A dictionary ready for JSON: images, inspected, classes {name: {"boxes": usable boxes,
        "images": number of images with one}}, width, height, bytes and boxes (usable ones of an
        image) {min, median, mean, max}, formats {name: count}, annotations {problem: names of
        those that have it}, and faulty and damaged (but decodable) [{index, path, reason}].
    """
    indices = spread(len(dataset), sample or len(dataset))
    facts = list(in_threads(lambda index: _look(dataset, index, max_pixels), indices))
    good = [fact for fact in facts if fact.error is None]
    counts = zip(dataset.info.metadata["class_names"], *dataset.counts(), strict=True)
    return {
        "images": len(dataset),
        "inspected": len(facts),
        "classes": {name: {"boxes": boxes, "images": images} for name, boxes, images in counts},
        "width": summary([fact.size[0] for fact in good]),
        "height": summary([fact.size[1] for fact in good]),
        "bytes": summary([fact.bytes for fact in facts]),
        "boxes": summary([fact.boxes for fact in good]),
        "formats": dict(collections.Counter(fact.kind for fact in good).most_common()),
        "annotations": dataset.faults(most_boxes),
        "faulty": [_entry(dataset, fact, fact.error) for fact in facts if fact.error],
        "damaged": [_entry(dataset, fact, fact.damage) for fact in facts if fact.damage],
    }


def _look(dataset: CocoDataset, index: int, max_pixels: int) -> _Image:
    """Decodes an image and compares its size with that of the annotations."""
    size = 0
    try:
        example = dataset[index]
        image = example["image"]
        size = len(image)
        header = read_header(image, max_pixels)
        decoded = decode(image, max_pixels)
        check_annotated_size(decoded.size, example["size"])
    except (UndecodableImageError, OSError) as error:
        return _Image(index, size, str(error))
    return _Image(
        index,
        size,
        damage=damage_of(image),
        kind=f"{header.format} {header.mode}",
        size=decoded.size,
        boxes=len(example["labels"]),
    )


def _entry(dataset: CocoDataset, fact: _Image, reason: str | None) -> dict[str, Any]:
    return {"index": fact.index, "path": dataset.name_of(fact.index), "reason": reason}
