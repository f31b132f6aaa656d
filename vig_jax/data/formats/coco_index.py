"""COCO's annotations as compact arrays, made once from the JSON file and kept in a cache.

The cache is a file in ~/.cache/vig_jax/coco (or in $XDG_CACHE_HOME), named by the digest of the
JSON file. Processes map it into memory, so a data set is small when it is pickled.
"""

import array
import itertools
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vig_jax.data.formats import mapped_arrays
from vig_jax.data.formats.json_stream import elements
from vig_jax.errors import DataSetError
from vig_jax.files import file_digest
from vig_jax.ops import rle
from vig_jax.text import preview_names, printable

logger = logging.getLogger(__name__)

_VERSION = 1  # of the arrays in the cache
_NO_MASK, _POLYGONS, _RLE = 0, 1, 2  # kinds of segmentations
_HUNDREDTHS = 100
_BLOCK = 2**20  # numbers that are looked at at once

FAULTS = (
    "",
    "no box of four numbers, or no whole number as id",
    "unknown category",
    "no area",
    "narrower or lower than one pixel",
    "outside of the image",
    "no segmentation",
    "no polygon of at least six numbers, an even count, and no valid RLE",
    "has a polygon of fewer than six numbers or an odd count; the others are used",
)
"""Faults of annotations, by code. Training leaves out annotations with any fault but the last."""
MALFORMED, _CATEGORY, _AREA, _SIDE, _OUTSIDE, _MISSING, _INVALID, USED = range(1, len(FAULTS))

Arrays = Mapping[str, np.ndarray]


class Annotations(NamedTuple):
    """The arrays of some annotations.

    Attributes:
        rows: their numbers in the file, sorted by image.
        ids: as the file says.
        boxes: left, top, width, height, pixels.
        labels: class, from 0.
        areas: as the file says, or of the box.
        crowd: whether it is a group.
        faults: codes of `FAULTS`.
    """

    rows: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    faults: np.ndarray


class CocoIndex:
    """The content of an annotation file.

    Args:
        file: the cache; None: the arrays stay in memory.
        arrays: in memory.
        digest: SHA-256 of the annotation file.
    """

    def __init__(self, file: Path | None, arrays: Arrays | None, digest: str):
        self._file, self._arrays, self.digest = file, arrays, digest

    def __getstate__(self) -> tuple[Path | None, Arrays | None, str]:
        return self._file, None if self._file else self._arrays, self.digest

    def __setstate__(self, state: tuple[Path | None, Arrays | None, str]) -> None:
        self._file, self._arrays, self.digest = state

    def __getitem__(self, name: str) -> np.ndarray:
        if self._arrays is None:
            assert self._file is not None
            self._arrays = mapped_arrays.read(self._file)
        return self._arrays[name]

    @property
    def has_masks(self) -> bool:
        """True if an annotation has a segmentation."""
        return bool(self["has_masks"][0])

    @property
    def categories(self) -> list[tuple[int, str]]:
        """Id and name of the categories, by rising id."""
        found: list[list[Any]] = json.loads(bytes(self["categories"]))
        return [(number, name) for number, name in found]

    @property
    def image_of_each(self) -> np.ndarray:
        """The number of the image of each annotation."""
        return np.repeat(np.arange(len(self["image_ids"])), np.diff(self["offsets"]))

    def name(self, image: int) -> str:
        """Returns the name of an image file."""
        start, end = self["name_ends"][image : image + 2].tolist()
        return bytes(self["names"][start:end]).decode(errors="surrogateescape")

    def annotations(self, image: int | None = None) -> Annotations:
        """Returns the annotations of an image, or of all images."""
        start, end = self["offsets"][[image, image + 1] if image is not None else [0, -1]].tolist()
        names = ("ids", "boxes", "labels", "areas", "crowd", "faults")
        return Annotations(np.arange(start, end), *(self[name][start:end] for name in names))

    def segmentation(self, row: int, size: tuple[int, int]) -> rle.Rle | tuple[np.ndarray, ...]:
        """Returns the mask of an annotation: an RLE or polygons [k, 2], perhaps none.

        Args:
            row: from `Annotations.rows`.
            size: width and height of the image, pixels.
        """
        start, end = self["rle_spans"][row].tolist()
        if end > start:
            return rle.from_string(bytes(self["rles"][start:end]), size[1], size[0])
        first, last = self["part_spans"][row].tolist()
        ends = self["number_ends"][first : last + 1].tolist()
        scale = _HUNDREDTHS if self["numbers"].dtype.kind == "i" else 1
        return tuple(
            self["numbers"][start:end].reshape(-1, 2) / scale
            for start, end in itertools.pairwise(ends)
        )


def open_index(file: Path) -> CocoIndex:
    """Returns the content of an annotation file, from the cache if it is there.

    Raises:
        DataSetError: the file is not in COCO's format.
        OSError: it cannot be read.
    """
    digest = file_digest(file)
    cache = _cache_folder() / f"{digest}-{_VERSION}.npz"
    try:
        return CocoIndex(cache, mapped_arrays.read(cache), digest)
    except FileNotFoundError:
        logger.info("%s: reading the annotations, once", printable(str(file)))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s), and made again", cache, error)
    arrays = build(file)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        mapped_arrays.write(cache, arrays)
        return CocoIndex(cache, mapped_arrays.read(cache), digest)
    except OSError as error:
        logger.warning("%s cannot be written (%s): annotations stay in memory", cache, error)
        return CocoIndex(None, arrays, digest)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vig_jax" / "coco"


def build(file: Path) -> dict[str, np.ndarray]:
    """Reads an annotation file and returns the arrays of `CocoIndex`.

    Raises:
        DataSetError: the file is not in COCO's format.
        OSError: it cannot be read.
    """
    return arrays_of(file, elements(file, ("images", "annotations", "categories")))


def arrays_of(file: Path, items: Iterable[tuple[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the arrays of `CocoIndex`.

    Args:
        file: the origin, for messages.
        items: elements of COCO's `images`, `annotations` and `categories`, each with its key.

    Raises:
        DataSetError: they are not in COCO's format.
    """
    images, categories, annotations = _Images(), {}, _Annotations()
    for key, item in items:
        try:
            if key == "images":
                images.add(item)
            elif key == "annotations":
                annotations.add(item)
            else:
                categories[int(item["id"])] = str(item.get("name", item["id"]))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataSetError(
                f"{printable(str(file))} has an element of `{key}` that is not as in COCO: "
                f"{printable(repr(item))[:200]} ({type(error).__name__}: {error})"
            ) from error
    if not images.ids or not categories:
        raise DataSetError(
            f"{printable(str(file))} has {len(images.ids)} images and {len(categories)} "
            "categories; both are needed, as in COCO's instances_train2017.json"
        )
    ordered = sorted(categories.items())
    return {
        "categories": np.frombuffer(json.dumps(ordered).encode(), np.uint8),
        **images.arrays(file),
        **annotations.arrays(images, [number for number, _ in ordered]),
    }


class _Images:
    """Collects images."""

    def __init__(self) -> None:
        self.ids, self.sizes = array.array("q"), array.array("i")
        self._names, self._ends = bytearray(), array.array("q", [0])

    def add(self, item: Mapping[str, Any]) -> None:
        self.ids.append(item["id"])
        self.sizes.extend((item["width"], item["height"]))
        self._names += item["file_name"].encode(errors="surrogateescape")
        self._ends.append(len(self._names))

    def arrays(self, file: Path) -> dict[str, np.ndarray]:
        ids = np.array(self.ids, np.int64)
        sizes = np.array(self.sizes, np.int32).reshape(-1, 2)
        number, count = np.unique(ids, return_counts=True)
        for wrong, problem in ((number[count > 1], "twice"), (ids[(sizes < 1).any(1)], "no size")):
            if len(wrong):
                raise DataSetError(
                    f"{printable(str(file))} has {len(wrong)} images with one id twice or without "
                    f"width and height ({problem}: {preview_names(wrong)}): correct them"
                )
        names = np.frombuffer(bytes(self._names), np.uint8)
        ends = np.array(self._ends, np.int64)
        return {"image_ids": ids, "sizes": sizes, "names": names, "name_ends": ends}


class _Annotations:
    """Collects annotations."""

    def __init__(self) -> None:
        self._ids, self._images = array.array("q"), array.array("q")
        self._categories, self._crowd = array.array("q"), array.array("b")
        self._boxes, self._areas = array.array("d"), array.array("d")
        self._malformed, self._invalid = array.array("b"), array.array("b")
        self._kinds = array.array("b")
        self._numbers, self._number_ends = array.array("d"), array.array("q", [0])
        self._rles = bytearray()
        # The first part and the one behind the last one of each annotation, and the same of bytes.
        self._part_spans, self._rle_spans = array.array("q"), array.array("q")
        self._rle_sizes = array.array("q")  # width and height

    def add(self, item: Mapping[str, Any]) -> None:
        numbers = [item.get(name) for name in ("id", "image_id", "category_id")]
        box = item.get("bbox")
        good = all(type(number) is int for number in numbers)
        good = good and isinstance(box, list) and len(box) == 4
        good = good and all(isinstance(x, int | float) for x in box or ())
        self._malformed.append(not good)
        number, image, category = (x if type(x) is int else -1 for x in numbers)
        left, top, width, height = box if good and box else (0, 0, 0, 0)
        self._ids.append(number)
        self._images.append(image)
        self._categories.append(category)
        self._boxes.extend((left, top, width, height))
        area = item.get("area")
        self._areas.append(area if isinstance(area, int | float) else width * height)
        self._crowd.append(bool(item.get("iscrowd")))
        before = len(self._number_ends) - 1, len(self._rles)
        self._rle_sizes.extend(self._add_mask(item.get("segmentation")))
        self._part_spans.extend((before[0], len(self._number_ends) - 1))
        self._rle_spans.extend((before[1], len(self._rles)))

    def _add_mask(self, mask: Any) -> tuple[int, int]:
        """Adds the polygons that are valid, or an RLE; returns width and height of the RLE."""
        kind, invalid, size = _NO_MASK, 0, (0, 0)
        if isinstance(mask, list) and mask:
            kind = _POLYGONS
            for polygon in mask:
                invalid += not self._add_polygon(polygon)
            invalid = (USED if invalid < len(mask) else _INVALID) if invalid else 0
        elif isinstance(mask, dict) and mask:
            kind = _RLE
            try:
                height, width = mask["size"]
                found = rle.from_coco(mask, height, width)
                self._rles += rle.to_string(found).encode()
                size = width, height
            except (DataSetError, KeyError, TypeError, ValueError, OverflowError):
                invalid = _INVALID
        self._kinds.append(kind)
        self._invalid.append(invalid)
        return size

    def _add_polygon(self, polygon: Any) -> bool:
        """Adds a polygon and returns True, if it is valid."""
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return False
        before = len(self._numbers)
        try:
            self._numbers.extend(polygon)
        except (TypeError, OverflowError):
            del self._numbers[before:]
            return False
        self._number_ends.append(len(self._numbers))
        return True

    def arrays(self, images: _Images, category_ids: list[int]) -> dict[str, np.ndarray]:
        of_image = _positions(np.array(self._images, np.int64), np.array(images.ids, np.int64))
        order = np.argsort(of_image, kind="stable")
        order = order[np.searchsorted(of_image[order], 0) :]  # those of no image are left out
        of_image = of_image[order]
        labels = _positions(
            np.array(self._categories, np.int64)[order], np.array(category_ids, np.int64)
        )
        boxes = np.array(self._boxes).reshape(-1, 4)[order]
        areas = np.array(self._areas)[order]
        sizes = np.array(images.sizes).reshape(-1, 2)[of_image]
        result = {
            "offsets": np.searchsorted(of_image, np.arange(len(images.ids) + 1)),
            "ids": np.array(self._ids, np.int64)[order],
            "boxes": boxes,
            "labels": labels.astype(np.int32),
            "areas": areas,
            "crowd": np.array(self._crowd, np.int8)[order].astype(bool),
            "orphans": np.array([len(self._ids) - len(order)]),
        }
        kinds = np.array(self._kinds, np.int8)[order]
        result["has_masks"] = np.array([kinds.any()])
        faults = np.array(self._invalid, np.uint8)[order]
        inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
        masks = self._masks(order)
        rle_sizes = np.array(self._rle_sizes, np.int64).reshape(-1, 2)[order]
        wrong_size = (kinds == _RLE) & (rle_sizes != sizes).any(axis=1)
        masks["rle_spans"][wrong_size] = 0
        for wrong, code in (  # the last one that applies is the one that is named
            (wrong_size, _INVALID),
            ((kinds == _NO_MASK) & bool(kinds.any()), _MISSING),
            (~(inside > 0).all(axis=1), _OUTSIDE),
            (~(boxes[:, 2:] >= 1).all(axis=1), _SIDE),
            (~(areas > 0), _AREA),
            (labels < 0, _CATEGORY),
            (~np.isfinite(boxes).all(axis=1), MALFORMED),
            (np.array(self._malformed, np.int8)[order] > 0, MALFORMED),
        ):
            faults[wrong] = code
        return result | {"faults": faults} | masks

    def _masks(self, order: np.ndarray) -> dict[str, np.ndarray]:
        """Returns polygons and RLEs in the order of the file, and where those of `order` are."""
        return {
            "numbers": _compact(np.frombuffer(self._numbers) if self._numbers else np.zeros(0)),
            "number_ends": np.array(self._number_ends, np.int64),
            "part_spans": np.array(self._part_spans, np.int64).reshape(-1, 2)[order],
            "rles": np.frombuffer(bytes(self._rles), np.uint8),
            "rle_spans": np.array(self._rle_spans, np.int64).reshape(-1, 2)[order],
        }


def _compact(numbers: np.ndarray) -> np.ndarray:
    """Returns numbers in hundredths as int32 if that is exact, as in COCO, else unchanged."""
    result = np.empty(len(numbers), np.int32)
    for start in range(0, len(numbers), _BLOCK):
        some = numbers[start : start + _BLOCK]
        hundredths = np.rint(some * _HUNDREDTHS)
        if not ((np.abs(hundredths) < 2**31) & (hundredths / _HUNDREDTHS == some)).all():
            return numbers
        result[start : start + _BLOCK] = hundredths
    return result


def _positions(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns the position of each value in an array of different numbers; -1: not in it."""
    order = np.argsort(among, kind="stable")
    found = np.minimum(np.searchsorted(among[order], values), len(among) - 1)
    return np.where(among[order[found]] == values, order[found], -1)
