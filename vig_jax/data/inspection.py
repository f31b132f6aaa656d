"""Inspects a data set: counts, sizes, formats, broken files, and a contact sheet."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from vig_jax.data.dataset import ClassificationDataset
from vig_jax.data.loader.workers import cpu_count
from vig_jax.data.preprocess.decode import damage_of, decode, read_header
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.errors import DataSetError, UndecodableImageError
from vig_jax.text import printable

_CELL, _CAPTION, _MARGIN = 112, 14, 4  # pixels
_FONT_SIZE = 10  # pixels
_COLUMNS = 10
_MOST_IMAGES = 100
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """Facts about one image."""

    index: int
    bytes: int
    kind: str  # format and mode, e.g. "JPEG RGB"
    size: tuple[int, int] | None  # width, height in pixels
    error: str | None
    damage: str | None = None  # of an image that can be decoded
    label: int = -1


def inspect(
    dataset: ClassificationDataset, *, sample: int | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Decodes a split and describes it.

    Args:
        dataset: the split.
        sample: inspect this number of images, spread evenly; None: all.
        max_pixels: larger images, by width times height, are reported as undecodable.

    Returns:
        A dictionary ready for JSON: images, inspected, classes {name: count}, width, height and
        bytes {min, median, mean, max}, formats {name: count}, and undecodable and damaged (but
        decodable) [{index, path, reason}].
    """
    indices = spread(len(dataset), sample or len(dataset))
    facts = list(in_threads(lambda index: _inspect_image(dataset, index, max_pixels), indices))
    good = [fact for fact in facts if fact.size is not None]
    counts = _class_counts(dataset, facts)
    return {
        "images": len(dataset),
        "inspected": len(facts),
        "classes": dict(zip(dataset.class_names, counts, strict=True)),
        "width": summary([fact.size[0] for fact in good if fact.size]),
        "height": summary([fact.size[1] for fact in good if fact.size]),
        "bytes": summary([fact.bytes for fact in facts]),
        "formats": dict(collections.Counter(fact.kind for fact in good).most_common()),
        "undecodable": [
            {"index": fact.index, "path": dataset.name_of(fact.index), "reason": fact.error}
            for fact in facts
            if fact.error is not None
        ],
        "damaged": [
            {"index": fact.index, "path": dataset.name_of(fact.index), "reason": fact.damage}
            for fact in facts
            if fact.damage is not None
        ],
    }


def in_threads(look: Callable[[int], _T], indices: Sequence[int]) -> Iterator[_T]:
    """Yields what `look` returns for each index, in order, and draws a bar of the progress."""
    # The decoders release Python's lock.
    with concurrent.futures.ThreadPoolExecutor(cpu_count()) as pool:
        yield from tqdm(
            pool.map(look, indices),
            "inspect",
            len(indices),
            unit="img",
            disable=None,
            leave=False,
        )


def _class_counts(dataset: ClassificationDataset, facts: list[_Facts]) -> list[int]:
    """Returns the number of images of each class; of the inspected ones if a label is wrong."""
    try:
        labels = dataset.labels()
    except DataSetError:
        labels = np.array([fact.label for fact in facts], np.int64)
    valid = labels[(labels >= 0) & (labels < dataset.num_classes)]
    return np.bincount(valid, minlength=dataset.num_classes).tolist()


def spread(length: int, count: int) -> list[int]:
    """Returns up to `count` numbers of `range(length)`, spread evenly."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int)).tolist()


def _inspect_image(dataset: ClassificationDataset, index: int, max_pixels: int) -> _Facts:
    size, label = 0, -1
    try:
        example = dataset[index]
        image, label = example["image"], int(example["label"])
        size = len(image) if isinstance(image, bytes) else image.nbytes
        if isinstance(image, bytes):
            header = read_header(image, max_pixels)
            kind = f"{header.format} {header.mode}"
        else:
            kind = "pixels RGB"
        return _Facts(
            index, size, kind, decode(image, max_pixels).size, None, damage_of(image), label
        )
    except (DataSetError, UndecodableImageError, OSError) as error:
        return _Facts(index, size, "", None, str(error), None, label)


def summary(values: list[int]) -> dict[str, float] | None:
    """Returns min, median, mean and max of some numbers; None if there are none."""
    if not values:
        return None
    array = np.array(values)
    return {
        "min": float(array.min()),
        "median": float(np.median(array)),
        "mean": round(float(array.mean()), 1),
        "max": float(array.max()),
    }


def contact_sheet(dataset: ClassificationDataset, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Draws up to a hundred images with the names of their classes, of up to a hundred classes.

    The place of an image that cannot be decoded, or is larger than `max_pixels` (width times
    height), stays empty.

    Returns:
        An RGB image.
    """
    labels = dataset.labels()
    by_class = [np.flatnonzero(labels == label) for label in range(dataset.num_classes)]
    by_class = [members for members in by_class if len(members)]
    shown = [by_class[i] for i in spread(len(by_class), _MOST_IMAGES)]
    each = max(1, min(_COLUMNS, _MOST_IMAGES // len(shown)))
    picks = [members[i] for members in shown for i in spread(len(members), each)]
    columns = min(_COLUMNS, len(picks))
    rows = -(-len(picks) // columns)
    width, height = _CELL + _MARGIN, _CELL + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font(printable("".join(sorted(set("".join(dataset.class_names))))))
    for number, index in enumerate(int(i) for i in picks):
        left = _MARGIN + number % columns * width
        top = _MARGIN + number // columns * height
        try:
            image = decode(dataset[index]["image"], max_pixels)
        except (UndecodableImageError, OSError):
            draw.rectangle((left, top, left + _CELL, top + _CELL), outline="red")
        else:
            scale = _CELL / max(image.size)
            size = tuple(max(1, round(side * scale)) for side in image.size)
            image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
            sheet.paste(image, (left + (_CELL - size[0]) // 2, top + (_CELL - size[1]) // 2))
        name = printable(dataset.class_names[labels[index]])
        while draw.textlength(name, font=font) > _CELL:
            name = name.removesuffix("…")[:-1] + "…"
        draw.text((left, top + _CELL), name, fill="black", font=font)
    return sheet


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own font for ASCII, or else an installed one with the letters of a text."""
    if text.isascii():
        return ImageFont.load_default()
    from vig_jax.figures import default_font, font_files  # imports Matplotlib

    file = [*font_files(text), default_font()][0]
    return ImageFont.truetype(file, _FONT_SIZE)


def save_sheet(dataset: ClassificationDataset, path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Writes the contact sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(dataset, max_pixels).save(path)
