"""The interfaces of data sets, and the base class of the classification data sets of this package.

`vig_jax.data.datasets.registry` lists the data sets that are known by name.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

from vig_jax.errors import DataSetError
from vig_jax.ops.rle import Rle
from vig_jax.text import preview_names

# One item of a data set, by name: `image` as encoded bytes or uint8 [H, W, 3], `label` as int, ...
Example = Mapping[str, Any]
Split = Literal["train", "eval"]
# "all" is the whole of a data set without a validation split: `vig_jax.data.datasets.split`.
Part = Literal["train", "eval", "all"]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about one split of a data set.

    Args:
        name: for messages.
        fingerprint: digest of what the split holds. It is the same on every machine, wherever the
            files are.
        metadata: JSON values that the task needs, e.g. {"class_names": ("cat", "dog")}. They are
            stored in checkpoints.
    """

    name: str
    fingerprint: str
    metadata: Mapping[str, Any]


@runtime_checkable
class Dataset(Protocol):
    """One split of a data set, with random access. It can be pickled, and is then small."""

    @property
    def info(self) -> DatasetInfo:
        """Name, fingerprint and metadata. They are computed once, at the first access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads example `index`. An OSError marks it as a bad example."""

    def name_of(self, index: int) -> str:
        """Returns the origin of example `index` for messages, e.g. a relative path."""


@runtime_checkable
class ClassificationDataset(Dataset, Protocol):
    """A data set of examples that have `image` and `label`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label."""

    @property
    def num_classes(self) -> int:
        """The number of labels."""

    def labels(self) -> Int[np.ndarray, "n"]:
        """Returns the label of every example, int32; -1 if it cannot be read."""


class GroundTruth(NamedTuple):
    """All annotated objects of an image, in pixels of the stored image, crowds included.

    Attributes:
        image_id: number of the image in its data set.
        size: width and height of the image, pixels.
        ids: numbers of the annotations.
        boxes: x1, y1, x2, y2.
        labels: class, from 0.
        areas: of the masks, or of the boxes if there are no masks; COCO's file says it.
        crowd: whether it is a group that evaluation neither rewards nor punishes.
        masks: of the size of the image; None: the data set has boxes alone.
    """

    image_id: int
    size: tuple[int, int]
    ids: Int64[np.ndarray, "n"]
    boxes: Float64[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, "n"]
    areas: Float64[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    masks: tuple[Rle, ...] | None


@runtime_checkable
class DetectionDataset(Dataset, Protocol):
    """A data set of images with boxes and perhaps masks of objects.

    An example has `image`; `size`, its width and height in pixels; `image_id`; `boxes` float32
    [n, 4], left, top, right and bottom in pixels; and `labels` int32 [n], from 0. Masks are either
    `instance_masks` bool [n, h, w], or `segmentations`, for each object an `Rle` or polygons, each
    float32 [k, 2]. Only objects that are fit for training are in it.

    `info.metadata` has `instance_names`, the names of the labels; `instance_palette`, their
    colours; `category_ids`, their numbers in COCO's format; and `has_masks`.
    """

    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every image in pixels."""

    def ground_truth(self, index: int) -> GroundTruth:
        """Returns all objects of an image, for evaluation. The image file is not read."""


class ClassificationBase(abc.ABC):
    """Base class of the classification data sets of this package.

    Subclasses implement `__getitem__`, `name_of` and `digest`, and set `_labels` unless they
    override `labels` and `__len__`.

    Args:
        name: for messages.
        class_names: one name per label.
    """

    _labels: Int[np.ndarray, "n"]

    def __init__(self, name: str, class_names: Sequence[str]):
        self.name = name
        self.class_names = tuple(class_names)

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """Name, fingerprint and `class_names`."""
        return DatasetInfo(self.name, self.digest(), {"class_names": self.class_names})

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._labels)

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    @abc.abstractmethod
    def name_of(self, index: int) -> str:
        """Returns the origin of example `index` for messages, e.g. a relative path."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Computes the fingerprint."""

    def labels(self) -> Int[np.ndarray, "n"]:
        """Returns the label of every example, int32; -1 if it cannot be read."""
        return self._labels

    def known_sizes(self) -> Int32[np.ndarray, "n 2"] | None:
        """Returns width and height of every image in pixels; None if the files must be read."""
        return None

    def check_index(self, index: int) -> None:
        """Raises IndexError if there is no example `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)


def check_labels(labels: Int[np.ndarray, "n"], class_names: Sequence[str], where: Path) -> None:
    """Checks that every label has a class name.

    Raises:
        DataSetError: a label is out of range.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise DataSetError(
            f"{len(wrong)} labels of {where} are out of range: example {wrong[0]} has label "
            f"{labels[wrong[0]]}, but there are {len(class_names)} class names (labels count from "
            "0). Name all classes in info.json or classes.txt, one per label"
        )


def check_classes_filled(
    counts: Int[np.ndarray, "k"], class_names: Sequence[str], where: object, hint: str = ""
) -> None:
    """Checks that every class of a training split has images.

    Args:
        counts: images per class.
        class_names: one name per label.
        where: the folder, for the message.
        hint: added to the message.

    Raises:
        DataSetError: names the empty classes.
    """
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise DataSetError(
            f"{len(empty)} classes of {where} have no images: {preview_names(empty)}. "
            f"Fill them or remove them.{hint}"
        )
