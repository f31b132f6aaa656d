"""Anchors: the boxes around which a region proposal network predicts."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Size = tuple[int, int]  # rows, columns


@dataclasses.dataclass(frozen=True)
class AnchorGenerator:
    """Anchors of one scale and several shapes at every position of a pyramid.

    They are ordered by level, row, column and ratio. Source: mmdet's `AnchorGenerator`.

    Attributes:
        strides: pixels between positions, for each level.
        scale: side of a square anchor over the stride.
        ratios: height over width.
        rounded: whether the corners of the anchor at the origin are whole pixels, as in
            torchvision.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = False

    def base(self, level: int) -> Float[np.ndarray, "A 4"]:
        """Returns the anchors of a level at the origin, which is their centre."""
        root = np.sqrt(np.array(self.ratios))
        side = self.strides[level] * self.scale
        half = np.stack([side / root, side * root], -1) / 2
        base = np.concatenate([-half, half], -1)
        return np.round(base) if self.rounded else base

    def boxes(
        self, sizes: Sequence[Size], image: Size | None = None, dtype: type = np.float32
    ) -> tuple[Float[Array, "_ 4"], ...]:
        """Returns the anchors of each level.

        Args:
            sizes: rows and columns of the map of each level.
            image: height and width of the images, to take image // map as the step between
                positions, as torchvision does. None: the step is the stride.
            dtype: of the result.
        """
        return tuple(self._level(i, size, image, dtype) for i, size in enumerate(sizes))

    def valid(
        self, sizes: Sequence[Size], region: Int[Array, "2"]
    ) -> tuple[Bool[Array, " _"], ...]:
        """Returns which anchors of each level belong to positions that begin inside a region.

        Args:
            sizes: rows and columns of the map of each level.
            region: height and width of the valid part of the images, at the top left, pixels.
        """
        flags = []
        for (rows, columns), stride in zip(sizes, self.strides, strict=True):
            inside_y = jnp.arange(rows) * stride < region[0]
            inside_x = jnp.arange(columns) * stride < region[1]
            flags.append(jnp.repeat((inside_y[:, None] & inside_x).ravel(), len(self.ratios)))
        return tuple(flags)

    def _level(self, level: int, size: Size, image: Size | None, dtype: type) -> jax.Array:
        stride = self.strides[level]
        step = (stride, stride) if image is None else (image[0] // size[0], image[1] // size[1])
        y = jnp.arange(size[0], dtype=dtype)[:, None] * step[0]
        x = jnp.arange(size[1], dtype=dtype) * step[1]
        shift = jnp.stack([*jnp.broadcast_arrays(x, y)] * 2, -1)  # x, y, x, y
        return (shift[:, :, None] + jnp.asarray(self.base(level), dtype)).reshape(-1, 4)
