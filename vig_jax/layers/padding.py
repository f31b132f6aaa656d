"""Padded canvases: which cells of a map belong to each image, and their order in a scan."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vig_jax.sharding.kernels import ROWS, shard_kernel


class Padding(flax.struct.PyTreeNode):
    """The valid cells of a batch of padded maps, the top-left part of each.

    A scan multiplies its state by the decay of every token, also by that of a pad without key and
    value. So pads must not lie between valid tokens: the valid ones are moved to the front of the
    sequence, row by row, and the pads follow as zeros. The moves and their gradients are gathers,
    so they are deterministic.

    Attributes:
        valid: whether a cell belongs to the image [B, h, w].
        to_front: for each token of the gathered sequence its number in the map [B, T], with T = h w
            for "none". None if the valid tokens are at the front already.
        to_map: for each cell of the map its number in the gathered sequence [B, T], with T for
            "none".
    """

    valid: Bool[Array, "B h w"]
    to_front: Int[Array, "B T"] | None = None
    to_map: Int[Array, "B T"] | None = None

    def zero_pads(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """Returns the map with zeros in the padding, also where it is NaN."""
        return jnp.where(self.valid[..., None], x, jnp.zeros((), x.dtype))

    def flatten(self, x: Float[Array, "B h w D"]) -> Float[Array, "B T D"]:
        """Returns the valid tokens of a map, row by row, and then zeros."""
        batch, rows, columns, width = x.shape
        if self.to_front is None or self.to_map is None:
            return self.zero_pads(x).reshape(batch, rows * columns, width)
        return take_tokens(x.reshape(batch, rows * columns, width), self.to_front, self.to_map)

    def unflatten(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B h w D"]:
        """Returns the map of a sequence that is ordered as by `flatten`.

        The padding is zero if the tokens that follow the valid ones are.
        """
        if self.to_front is not None and self.to_map is not None:
            tokens = take_tokens(tokens, self.to_map, self.to_front)
        return tokens.reshape(*self.valid.shape, tokens.shape[-1])


def valid_cells(sizes: Int[Array, "B 2"], grid: Sequence[int]) -> Padding:
    """Returns the padding of maps that are not scanned, such as the images.

    Args:
        sizes: rows and columns of the valid part of each map.
        grid: rows and columns of the maps.
    """
    (rows, columns), (height, width) = grid, jnp.split(sizes[..., None], 2, axis=1)
    inside_rows = jnp.arange(rows)[None, :, None] < height
    return Padding(inside_rows & (jnp.arange(columns)[None, None, :] < width))


def zero_outside(
    x: Float[Array, "B h w D"], sizes: Int[Array, "B 2"] | None, stride: int
) -> Float[Array, "B h w D"]:
    """Returns the map with zeros outside of the valid part of each image.

    Args:
        x: the map.
        sizes: height and width in pixels of the valid part, the top-left one. None: everything is
            valid.
        stride: pixels per cell; a cell that begins in the valid part belongs to it.
    """
    return x if sizes is None else valid_cells(-(-sizes // stride), x.shape[1:3]).zero_pads(x)


def valid_tokens(
    sizes: Int[Array, "B 2"], grid: Sequence[int], padded_right: bool = True
) -> Padding:
    """Returns the padding of maps that are scanned.

    Args:
        sizes: rows and columns of the valid part of each map.
        grid: rows and columns of the maps.
        padded_right: False promises that every valid part has all columns. Its tokens are then at
            the front of the sequence, and no token is moved.
    """
    padding = valid_cells(sizes, grid)
    if not padded_right:
        return padding
    (rows, columns), (height, width) = grid, jnp.split(sizes, 2, axis=1)
    tokens = rows * columns
    number = jnp.arange(tokens, dtype=sizes.dtype)[None]
    row, column = number // columns, number % columns
    to_map = jnp.where(padding.valid.reshape(-1, tokens), row * width + column, tokens)
    some = jnp.maximum(width, 1)  # a map without cells has no rows to divide by
    source = number // some * columns + number % some
    return padding.replace(
        to_front=jnp.where(number < height * width, source, tokens), to_map=to_map
    )


def take_tokens(tokens: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns `tokens` [B, T, D] at the numbers `source` [B, T], and zero at the number T.

    `inverse` are the numbers that undo it. The gradient is a gather, too.
    """
    return shard_kernel(_permute, (ROWS, ROWS, ROWS), ROWS)(tokens, source, inverse)


@jax.custom_vjp
def _permute(tokens: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    del inverse
    return jnp.take_along_axis(tokens, source[..., None], axis=1, mode="fill", fill_value=0)


def _permute_forward(
    tokens: jax.Array, source: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _permute(tokens, source, inverse), (source, inverse)


def _permute_backward(
    numbers: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, None, None]:
    """Returns the gradient as a gather by the inverse, where JAX's own rule would scatter."""
    source, inverse = numbers
    return _permute(grad, inverse, source), None, None


_permute.defvjp(_permute_forward, _permute_backward)
