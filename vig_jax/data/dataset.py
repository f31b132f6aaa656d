"""The interface of a data set; `vig_jax.data.datasets.registry` lists the known ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vig_jax.data.example import Example
from vig_jax.errors import DataSetError

Split = Literal["train", "eval"]
# "all": of a data set that is not divided yet, see `vig_jax.data.datasets.split`.
Part = Literal["train", "eval", "all"]


@runtime_checkable
class Source(Protocol):
    """A data set split with random access; picklable, and small when pickled."""

    @property
    def num_classes(self) -> int:
        """How many labels there are."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def name_of(self, index: int) -> str:
        """Where example `index` comes from, for messages: a relative path, or like one."""

    def fingerprint(self) -> str:
        """Digest of what the split holds; the same on every machine, wherever the data lies."""


@runtime_checkable
class Labelled(Protocol):
    """A source that knows its labels without reading the images."""

    def labels(self) -> Int[np.ndarray, "n"]:
        """The label of every example, int32."""


def labels_of(source: Source) -> Int[np.ndarray, "n"]:
    """The labels of all examples; of some sources every record must be read for that.

    Args:
        source: any.

    Returns:
        int32, in the order of the source.
    """
    if isinstance(source, Labelled):
        return source.labels()
    return np.array([source[index]["label"] for index in range(len(source))], np.int32)


def check_labels(labels: Int[np.ndarray, "n"], class_names: Sequence[str], where: Path) -> None:
    """Holds labels to the range that the class names give.

    Raises:
        DataSetError: a label that has no class name.
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
    """Refuses a training split some of whose classes have no images.

    Raises:
        DataSetError: names those classes.
    """
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise DataSetError(
            f"{len(empty)} classes of {where} hold no images: {few(empty)}. "
            f"Fill them or remove them.{hint}"
        )


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
