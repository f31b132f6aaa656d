"""The kernels. A program walks down the rows of a band, with sums for three rows in registers.

A row of a tile is loaded three times: as it is, and shifted by a column to either side. Each of the
three is added to the sums of the three output rows that it is a neighbour of.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...core import triton
from ...core.triton import both
from ...core.types import Block, Mask, Ref
from ..spec import DepthwiseConvSpec
from .config import KernelConfig


class _Tile:
    """Columns [P] by channels [C] of a band; columns beyond the last image are masked."""

    def __init__(
        self,
        spec: DepthwiseConvSpec,
        config: KernelConfig,
        tile: Any,
        band: Any,
        channel_block: Any,
    ):
        self._spec, self._config = spec, config
        self.shape = (config.columns, config.channels)
        self._first_row = band * config.rows
        columns = tile * config.columns + jnp.arange(config.columns)[:, None]
        channels = channel_block * config.channels + jnp.arange(config.channels)[None, :]
        image, self._x = columns // spec.width, columns % spec.width
        self._pixel = (image * spec.height + self._first_row) * spec.width + self._x
        self.channels = jnp.broadcast_to(channels, self.shape)
        self.channel_mask = None
        if spec.channels % config.channels:
            self.channel_mask = self.channels < spec.channels
        self._inside = self.channel_mask
        if spec.batch * spec.width % config.columns:
            self._inside = both(self._inside, columns < spec.batch * spec.width)

    def _mask(self, row: int) -> Mask:
        rows, height = self._config.rows, self._spec.height
        mask = self._inside
        if row < 0:
            mask = both(mask, self._first_row > 0)
        elif row >= rows or height % rows:
            mask = both(mask, self._first_row + row < height)
        return mask

    def read(self, ref: Ref, row: int, shift: int = 0) -> Block:
        """Loads a row of the band, or next to it [P, C]; zero outside of the map."""
        mask = self._mask(row)
        if shift < 0:
            mask = both(mask, self._x > 0)
        if shift > 0:
            mask = both(mask, self._x < self._spec.width - 1)
        return self._load(ref, self._pixel + (row * self._spec.width + shift), mask)

    def _load(self, ref: Ref, row: Any, mask: Mask) -> Block:
        if mask is not None:
            mask = jnp.broadcast_to(mask, self.shape)
        return triton.load(ref, (row, self.channels), mask)

    def write(self, ref: Ref, row: int, value: Block) -> None:
        """Stores a row of the band [P, C]."""
        mask = self._mask(row)
        if mask is not None:
            mask = jnp.broadcast_to(mask, self.shape)
        index = (self._pixel + row * self._spec.width, self.channels)
        triton.store(ref, index, value, mask)

    def weights(self, ref: Ref) -> list[list[Block]]:
        """Loads 3 by 3 arrays [P, C], float32."""
        return [
            [self._load(ref, 3 * i + j, self.channel_mask).astype(jnp.float32) for j in range(3)]
            for i in range(3)
        ]

    def prefetched(self, ref: Ref) -> "_Prefetched":
        """Returns the band's rows of an array that is not shifted."""
        return _Prefetched(self, ref, range(_rows(self._spec, self._config)), self._config.ahead)

    def neighbours(self, ref: Ref) -> Iterator[tuple[int, list[Any]]]:
        """Yields the rows of the band and those next to it, from top to bottom.

        Each row comes as three arrays [P, C] in float32: from the column to the left, from the same
        column, and from the column to the right; None where there is no such column. The shifted
        rows are prefetched later than the row itself. By then they are in the cache, and this takes
        fewer registers.
        """
        whole = self._spec.height <= self._config.rows
        rows = range(self._spec.height) if whole else range(-1, self._config.rows + 1)
        ahead = self._config.ahead
        same = _Prefetched(self, ref, rows, ahead)
        if self._spec.width == 1:
            yield from ((row, [None, same[row], None]) for row in rows)
        else:
            left, right = (_Prefetched(self, ref, rows, min(1, ahead), shift) for shift in (-1, 1))
            yield from ((row, [left[row], same[row], right[row]]) for row in rows)


class _Prefetched:
    """Rows of an array, used from top to bottom and loaded some rows before they are used.

    The compiler does not move a load ahead of a store.
    """

    def __init__(self, tile: _Tile, ref: Ref, rows: range, ahead: int, shift: int = 0):
        self._tile, self._ref, self._rows = tile, ref, rows
        self._ahead, self._shift = ahead, shift
        self._loaded: dict[int, Any] = {}

    def load(self, row: int) -> None:
        """Loads this row, if it is not loaded yet, and prefetches the rows after it."""
        for other in self._rows:
            if other not in self._loaded and other <= row + self._ahead:
                self._loaded[other] = self._tile.read(self._ref, other, self._shift)

    def __getitem__(self, row: int) -> Block:
        """Returns a row [P, C] in float32."""
        self.load(row)
        return triton.widen(self._loaded[row])


def _rows(spec: DepthwiseConvSpec, config: KernelConfig) -> int:
    return min(spec.height, config.rows)


def _locate(spec: DepthwiseConvSpec, config: KernelConfig) -> tuple[Any, Any, Any]:
    """Returns strip, band and channel block; neighbouring programs share pixels."""
    program = triton.program_id(0)
    channel_block = program % config.channel_blocks(spec)
    rest = program // config.channel_blocks(spec)
    return rest // config.bands(spec), rest % config.bands(spec), channel_block


def _convolution_kernel(
    x_ref: Ref,
    weights_ref: Ref,
    *refs: Ref,
    spec: DepthwiseConvSpec,
    config: KernelConfig,
) -> None:
    """Computes activated sums or, given their gradient, the gradient of the plain sums.

    Refs: pixels [B * h * w, D], weights [9, D], perhaps gradient [B * h * w, D]; result.
    """
    *grad_refs, out_ref = refs
    tile = _Tile(spec, config, *_locate(spec, config))
    grads = [tile.prefetched(ref) for ref in grad_refs]
    weights = tile.weights(weights_ref)
    rows = _rows(spec, config)

    def finish(row: int, out: Block) -> None:
        if spec.activation == "silu":
            gate = triton.sigmoid(out)
            out = grads[0][row] * (gate + out * gate * (1.0 - gate)) if grads else out * gate
        tile.write(out_ref, row, out)

    sums: dict[int, Block] = {}
    for row, triple in tile.neighbours(x_ref):
        for grad in grads:
            grad.load(row)
        for i in range(3):
            _add(sums, row + 1 - i, rows, zip(triple, weights[i], strict=True))
        if row > 0:
            finish(row - 1, sums.pop(row - 1))
    for row, out in sums.items():
        finish(row, out)


def _add(sums: dict[int, Block], row: int, rows: int, factors: Any) -> None:
    """Adds products to the sum of a row if the row belongs to the band."""
    if 0 <= row < rows:
        for a, b in factors:
            if a is not None:
                sums[row] = sums[row] + a * b if row in sums else a * b


def _gradient_kernel(
    x_ref: Ref,
    weights_ref: Ref,
    grad_ref: Ref,
    grad_x_ref: Ref,
    grad_weights_ref: Ref,
    *,
    spec: DepthwiseConvSpec,
    config: KernelConfig,
) -> None:
    """Computes the gradients of pixels and, for each strip and band, of weights; no activation.

    Refs: pixels [B * h * w, D], weights [9, D], gradient [B * h * w, D]; gradient of the pixels,
    gradient of the weights [strips * bands, 9, D].

    Both need the same shifted gradients: x[p] meets grad[q] by weight [i, j] if p = q + (i, j) - 1.
    """
    strip, band, channel_block = _locate(spec, config)
    rows = _rows(spec, config)
    strips = config.strips or config.tiles(spec)

    def walk(step: Any, so_far: tuple[Any, ...]) -> tuple[Any, ...]:
        tile = _Tile(spec, config, step * strips + strip, band, channel_block)
        totals = list(so_far)
        sums: dict[int, Block] = {}
        pixels = tile.prefetched(x_ref)
        for row, triple in tile.neighbours(grad_ref):
            mirrored = triple[::-1]
            for i in range(3):
                other = row + i - 1
                _add(sums, other, rows, zip(mirrored, weights[i], strict=True))
                if 0 <= other < rows:
                    x = pixels[other]
                    for j in range(3):
                        if mirrored[j] is not None:
                            totals[3 * i + j] = totals[3 * i + j] + x * mirrored[j]
            if row > 0:
                tile.write(grad_x_ref, row - 1, sums.pop(row - 1))
        for row, out in sums.items():
            tile.write(grad_x_ref, row, out)
        return tuple(totals)

    tile = _Tile(spec, config, strip, band, channel_block)
    weights = tile.weights(weights_ref)
    totals = (jnp.zeros(tile.shape, jnp.float32),) * 9
    if strips == config.tiles(spec):
        totals = walk(0, totals)
    else:
        steps = (config.tiles(spec) - strip + strips - 1) // strips
        totals = jax.lax.fori_loop(0, steps, walk, totals)
    part = strip * config.bands(spec) + band
    for n, total in enumerate(totals):
        channels = channel_block * config.channels + jnp.arange(config.channels)
        mask = channels < spec.channels if spec.channels % config.channels else None
        index = (part, n, channels)
        total = jnp.sum(total, axis=0)
        triton.store(grad_weights_ref, index, total, mask)


def forward(
    spec: DepthwiseConvSpec,
    config: KernelConfig,
    x: Array,
    kernel: Array,
    grad: Array | None = None,
) -> Array:
    """Computes the operator or, given the gradient of its result, that before the activation.

    Args:
        spec: The call.
        config: Of the kernel.
        x: [B, h, w, D].
        kernel: [3, 3, 1, D].
        grad: [B, h, w, D] or None.

    Returns:
        [B, h, w, D] in the type of x.
    """
    pixels = (spec.batch * spec.height * spec.width, spec.channels)
    inputs = [x.reshape(pixels), kernel.reshape(9, spec.channels)]
    name = "depthwise_conv_forward"
    if grad is not None:
        inputs.append(grad.reshape(pixels))
        name = "depthwise_conv_activation_gradient"
    [out] = _launch(
        _convolution_kernel, name, spec, config, [jax.ShapeDtypeStruct(pixels, spec.dtype)]
    )(*inputs)
    return out.reshape(x.shape)


def backward(
    spec: DepthwiseConvSpec, config: KernelConfig, x: Array, kernel: Array, grad: Array
) -> tuple[Array, Array]:
    """Computes the gradients of x and kernel, given that of the sums before the activation."""
    pixels = (spec.batch * spec.height * spec.width, spec.channels)
    parts = (config.strips or config.tiles(spec)) * config.bands(spec)
    grad_x, grad_weights = _launch(
        _gradient_kernel,
        "depthwise_conv_gradient",
        spec,
        config,
        [
            jax.ShapeDtypeStruct(pixels, spec.dtype),
            jax.ShapeDtypeStruct((parts, 9, spec.channels), jnp.float32),
        ],
    )(x.reshape(pixels), kernel.reshape(9, spec.channels), grad.reshape(pixels))
    grad_kernel = jnp.sum(grad_weights, axis=0).reshape(kernel.shape)
    return grad_x.reshape(x.shape), grad_kernel.astype(kernel.dtype)


def _launch(
    kernel: Callable[..., None],
    name: str,
    spec: DepthwiseConvSpec,
    config: KernelConfig,
    outs: list[jax.ShapeDtypeStruct],
) -> Callable[..., Any]:
    return triton.triton_call(
        functools.partial(kernel, spec=spec, config=config),
        name=name,
        programs=config.programs(spec),
        out_shape=outs,
        num_warps=config.num_warps,
        num_stages=1,
    )
