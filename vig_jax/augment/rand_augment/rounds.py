"""Applies one operation to each image of a batch, and computes little else.

Computing all fifteen operations for every image would waste fourteen. Operations that map values to
values by the same table in every image are therefore one table lookup for the whole batch; each of
the others is computed only for the images that drew it.

Shapes must be known when the program is compiled, but how many images draw an operation is not. So
the images that drew it are put first, and rounds of a fixed number of images work through them. The
usual number of rounds, which suffices for about 99 batches of 100, always runs; a loop then runs
the rounds that are missing.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from vig_jax.augment.rand_augment.geometry import GEOMETRIC, matrix, warp
from vig_jax.augment.rand_augment.operations import (
    APPLY_PROBABILITY,
    CODE,
    RAND_AUGMENT_OPS,
    Op,
)
from vig_jax.augment.rand_augment.pixels import contrast, equalize, recolour, sharpness, table

_CONTRASTS = ("AutoContrast", "ContrastIncreasing")
# A round works on 1/N of the batch; slots of a round that no image needs are wasted work. Of 256
# images, a layer has on average 43 geometric operations, 17 contrasts, and 9 each of the others:
# four rounds of 16 images, one of 32, and one of 16 each usually suffice.
_GEOMETRIC_ROUNDS = 16
_CONTRAST_ROUNDS = 8
_OTHER_ROUNDS = 16
_USUAL_DEVIATIONS = 2.5  # the usual rounds suffice up to this many deviations above the mean


def apply_ops(
    ops: Op, images: UInt8[Array, "B H W 3"], fill: tuple[int, int, int]
) -> UInt8[Array, "B H W 3"]:
    """Applies one operation to each image.

    Args:
        ops: one per image, fields of shape [B].
        images: RGB pixels.
        fill: colour of pixels from outside of the image.

    Returns:
        The pixels that Pillow's operations give.
    """
    _, H, W, _ = images.shape

    def move(op: Op, image: Array) -> Array:
        return warp(image, matrix(op, height=H, width=W), fill)

    images = recolour(ops, images, jax.vmap(table)(ops))  # changes none of the groups below
    groups = [
        _Group(move, GEOMETRIC, _GEOMETRIC_ROUNDS, ops),
        _Group(contrast, _CONTRASTS, _CONTRAST_ROUNDS, ops),
        _Group(sharpness, ("SharpnessIncreasing",), _OTHER_ROUNDS, ops),
        _Group(equalize, ("Equalize",), _OTHER_ROUNDS, ops),
    ]
    for group in groups:
        images = jax.lax.fori_loop(0, group.usual_rounds, group.run_round, images)

    def run_one_more(i: Array, images: Array) -> Array:
        for group in groups:
            images = group.run_round(group.usual_rounds + i, images)
        return images

    # Its length is known on the device alone. All groups share one loop, because the host waits for
    # the device at every loop of this kind.
    missing = functools.reduce(jnp.maximum, [group.rounds - group.usual_rounds for group in groups])
    return jax.lax.fori_loop(0, missing, run_one_more, images)


class _Group:
    """The images of a batch that drew one of some operations.

    Args:
        function: applies any of the operations to one image.
        names: of the operations.
        share: a round works on 1/share of the batch.
        ops: of all images.
    """

    def __init__(
        self, function: Callable[[Op, Array], Array], names: Sequence[str], share: int, ops: Op
    ) -> None:
        self._function, self._ops = function, ops
        codes = jnp.array([CODE[name] for name in names])
        drawn = jnp.any(ops.code[:, None] == codes, axis=1)
        self._batch = B = drawn.size
        self._size = math.ceil(B / share)  # of a round
        self._count = jnp.sum(drawn)
        # The images of the group first, then others, which fill the last round.
        self._rows = jnp.pad(jnp.argsort(~drawn), (0, -B % self._size))
        mean = B * APPLY_PROBABILITY * len(names) / len(RAND_AUGMENT_OPS)
        usual = min(B, mean + _USUAL_DEVIATIONS * math.sqrt(mean))
        self.usual_rounds = math.ceil(usual / self._size)

    @property
    def rounds(self) -> Int[Array, ""]:
        """The number of rounds that reach all images of the group."""
        return -(-self._count // self._size)

    def run_round(
        self, i: Int[Array, ""], images: UInt8[Array, "B H W 3"]
    ) -> UInt8[Array, "B H W 3"]:
        """Applies the operations to the images of round i; beyond the last round, to none."""
        start = i * self._size
        rows = jax.lax.dynamic_slice(self._rows, (start,), (self._size,))
        op = jax.tree.map(lambda x: x[rows], self._ops)
        changed = jax.vmap(self._function)(op, images[rows])
        # Unused slots get distinct rows beyond the batch, which are not written.
        slot = start + jnp.arange(self._size)
        target = jnp.where(slot < self._count, rows, self._batch + slot)
        return images.at[target].set(changed, mode="drop", unique_indices=True)
