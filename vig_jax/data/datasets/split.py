"""Dividing a data set that comes without a split: stratified, and the same for ever.

Of each class, `val_fraction` of the images (to the nearest, halves up; at least one, and at least
one is left to train on) are held out; a class of one image is for training only. Which ones, is
drawn from (seed, label) alone, by position within the class.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Int

from vig_jax.data.dataset import ClassificationBase, ClassificationDataset, Example, Split
from vig_jax.errors import DataSetError


class StratifiedDataset(ClassificationBase):
    """One side of the division, in the order of the whole.

    Args:
        whole: all images.
        split: "train" or "eval".
        fraction: of each class, held out; above 0 and below 1.
        seed: of the draw, 0 to 2**32 - 1.

    Raises:
        DataSetError: a fraction or seed out of range, or nothing to hold out.
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
                f"none of {len(whole)} images can be held out: every class has one image only"
            )

    def __getitem__(self, index: int) -> Example:
        return self._whole[int(self._positions[index])]

    def name_of(self, index: int) -> str:
        """Returns the image's name in the whole."""
        return self._whole.name_of(int(self._positions[index]))

    def digest(self) -> str:
        """Hashes the fingerprint of the whole and the settings of the split."""
        text = f"{self._whole.info.fingerprint} {self._settings}"
        return hashlib.sha256(text.encode()).hexdigest()


def stratified_positions(
    labels: Int[np.ndarray, "n"], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and positions held out.

    Args:
        labels: class of every image.
        fraction: of each class, held out.
        seed: of the draw.

    Returns:
        Two ascending int64 arrays that partition `range(n)`.
    """
    held_out = np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    for members in np.split(order, starts)[1:]:
        count = max(1, math.floor(len(members) * fraction + 0.5))
        count = min(count, len(members) - 1)
        # RandomState's stream is frozen (NEP 19): the split must never change.
        rng = np.random.RandomState([seed, int(labels[members[0]])])
        held_out[members[rng.permutation(len(members))[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
