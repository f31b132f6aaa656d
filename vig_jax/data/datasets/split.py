"""Splits a data set that has no validation split: stratified, and always in the same way.

`val_fraction` of the images of each class are held out, rounded to the nearest number, halves up.
At least one image is held out and at least one is left to train on; a class of one image is for
training only. The draw depends only on the seed, the label and the position within the class.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Int, Int32

from vig_jax.data.dataset import ClassificationBase, ClassificationDataset, Example, Split
from vig_jax.errors import DataSetError


class StratifiedDataset(ClassificationBase):
    """A side of the split, in the order of the whole data set.

    Args:
        whole: the data set to split.
        split: "train" or "eval".
        fraction: of each class to hold out; above 0 and below 1.
        seed: of the draw, 0 to 2**32 - 1.

    Raises:
        DataSetError: the fraction or the seed is out of range, or nothing can be held out.
    """

    def __init__(self, whole: ClassificationDataset, split: Split, fraction: float, seed: int):
        if not 0 < fraction < 1:
            raise DataSetError(f"config.data.val_fraction={fraction} must be between 0 and 1")
        if not 0 <= seed < 2**32:
            raise DataSetError(f"config.data.split_seed={seed} must be from 0 to 2**32 - 1")
        super().__init__(f"{whole.info.name} {split}", whole.class_names)
        self._whole = whole
        self._settings = f"stratified {split} {fraction!r} {seed}"
        labels = whole.labels()
        train, held_out = stratified_positions(labels, fraction, seed)
        self._positions = train if split == "train" else held_out
        self._labels = labels[self._positions]
        if not len(held_out):
            raise DataSetError(
                f"none of {len(whole)} images can be held out: every class has only one image"
            )

    def __getitem__(self, index: int) -> Example:
        return self._whole[int(self._positions[index])]

    def name_of(self, index: int) -> str:
        """Returns the image's name in the whole."""
        return self._whole.name_of(int(self._positions[index]))

    def known_sizes(self) -> Int32[np.ndarray, "n 2"] | None:
        """Returns the sizes that the whole knows."""
        whole = self._whole
        sizes = whole.known_sizes() if isinstance(whole, ClassificationBase) else None
        return None if sizes is None else sizes[self._positions]

    def digest(self) -> str:
        """Hashes the fingerprint of the whole and the settings of the split."""
        text = f"{self._whole.info.fingerprint} {self._settings}"
        return hashlib.sha256(text.encode()).hexdigest()


def stratified_positions(
    labels: Int[np.ndarray, "n"], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions to train on and the positions to hold out.

    Args:
        labels: class of every image; -1 for an unreadable one, which is not held out.
        fraction: of each class to hold out.
        seed: of the draw.

    Returns:
        Two ascending int64 arrays that partition `range(n)`.
    """
    held_out = np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-2))
    for members in np.split(order, starts)[1:]:
        if labels[members[0]] < 0:
            continue
        count = max(1, math.floor(len(members) * fraction + 0.5))
        count = min(count, len(members) - 1)
        # RandomState's stream is frozen (NEP 19): the split must never change.
        rng = np.random.RandomState([seed, int(labels[members[0]])])
        held_out[members[rng.permutation(len(members))[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
