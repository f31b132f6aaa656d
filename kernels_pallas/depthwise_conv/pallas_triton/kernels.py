"""The kernels. A program walks down the rows of a band, with sums for three rows in registers.

A row of a tile is loaded three times, as it is and shifted by a column to either side, and each of
the three is added to the sums of the three output rows that it is a neighbour of.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.core.pallas_compat import both
from kernels_pallas.depthwise_conv.pallas_triton.config import Tiling
from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec


class _Tile:
    """Columns [P] by channels [C] of a band; P pads to a power of two what images do not fill."""

    def __init__(
        self,
        spec: DepthwiseConvSpec,
        tiling: Tiling,
        tile: Any,
        band: Any,
        channel_block: Any,
        interpreting: bool,
    ):
        self._spec, self._tiling, self._interpreting = spec, tiling, interpreting
        self.shape = (tiling.columns, tiling.channels)
        self._first_row = band * tiling.rows
        columns = tile * tiling.columns + jnp.arange(tiling.columns)[:, None]
        channels = channel_block * tiling.channels + jnp.arange(tiling.channels)[None, :]
        image, self._x = columns // spec.width, columns % spec.width
        self._pixel = (image * spec.height + self._first_row) * spec.width + self._x
        self.channels = jnp.broadcast_to(channels, self.shape)
        self.channel_mask = None
        if spec.channels % tiling.channels:
            self.channel_mask = self.channels < spec.channels
        self._inside = self.channel_mask
        if spec.batch * spec.width % tiling.columns:
            self._inside = both(self._inside, columns < spec.batch * spec.width)

    def _mask(self, row: int) -> Any:
        rows, height = self._tiling.rows, self._spec.height
        mask = self._inside
        if row < 0:
            mask = both(mask, self._first_row > 0)
        elif row >= rows or height % rows:
            mask = both(mask, self._first_row + row < height)
        return mask

    def read(self, ref: Any, row: int, shift: int = 0) -> Any:
        """[P, C] of a row of the band, or next to it; zero outside of the map."""
        mask = self._mask(row)
        if shift < 0:
            mask = both(mask, self._x > 0)
        if shift > 0:
            mask = both(mask, self._x < self._spec.width - 1)
        return self._load(ref, self._pixel + (row * self._spec.width + shift), mask)

    def _load(self, ref: Any, row: Any, mask: Any) -> Any:
        if mask is not None:
            mask = jnp.broadcast_to(mask, self.shape)
        index = (row, self.channels)
        return pallas_compat.load(ref, index, mask, interpreting=self._interpreting)

    def wide(self, x: Any) -> Any:
        """In float32."""
        return pallas_compat.widen(x, interpreting=self._interpreting)

    def write(self, ref: Any, row: int, value: Any) -> None:
        mask = self._mask(row)
        if mask is not None:
            mask = jnp.broadcast_to(mask, self.shape)
        index = (self._pixel + row * self._spec.width, self.channels)
        pallas_compat.store(ref, index, value, mask, interpreting=self._interpreting)

    def weights(self, ref: Any) -> list[list[Any]]:
        """3 by 3 arrays [P, C], float32."""
        return [
            [self._load(ref, 3 * i + j, self.channel_mask).astype(jnp.float32) for j in range(3)]
            for i in range(3)
        ]

    def ahead(self, ref: Any) -> "_Ahead":
        """The band's rows of an array that is not shifted."""
        return _Ahead(self, ref, range(_rows(self._spec, self._tiling)), self._tiling.ahead)

    def neighbours(self, ref: Any) -> Iterator[tuple[int, list[Any]]]:
        """From top to bottom each row that is a neighbour of the band: itself, and shifted.

        Three arrays [P, C] in float32, by the column they come from: left, same, right; an entry is
        None where there is no such column. The shifted ones are in the cache by the time that the
        same row has come from memory, and need fewer registers for being loaded later.
        """
        whole = self._spec.height <= self._tiling.rows
        rows = range(self._spec.height) if whole else range(-1, self._tiling.rows + 1)
        ahead = self._tiling.ahead
        same = _Ahead(self, ref, rows, ahead)
        if self._spec.width == 1:
            yield from ((row, [None, same[row], None]) for row in rows)
        else:
            left, right = (_Ahead(self, ref, rows, min(1, ahead), shift) for shift in (-1, 1))
            yield from ((row, [left[row], same[row], right[row]]) for row in rows)


class _Ahead:
    """Rows of an array, asked for from top to bottom and loaded some rows before.

    Nothing else moves a load ahead of a store.
    """

    def __init__(self, tile: _Tile, ref: Any, rows: range, ahead: int, shift: int = 0):
        self._tile, self._ref, self._rows = tile, ref, rows
        self._ahead, self._shift = ahead, shift
        self._loaded: dict[int, Any] = {}

    def load(self, row: int) -> None:
        """Loads what has to be by the time that this row comes to its turn."""
        for other in self._rows:
            if other not in self._loaded and other <= row + self._ahead:
                self._loaded[other] = self._tile.read(self._ref, other, self._shift)

    def __getitem__(self, row: int) -> Any:
        """[P, C] in float32."""
        self.load(row)
        return self._tile.wide(self._loaded[row])


def _rows(spec: DepthwiseConvSpec, tiling: Tiling) -> int:
    return min(spec.height, tiling.rows)


def _locate(spec: DepthwiseConvSpec, tiling: Tiling) -> tuple[Any, Any, Any]:
    """Strip, band and channel block; neighbouring programs share pixels."""
    program = pallas_compat.program_id(0)
    channel_block = program % tiling.channel_blocks(spec)
    rest = program // tiling.channel_blocks(spec)
    return rest // tiling.bands(spec), rest % tiling.bands(spec), channel_block


def _convolution_kernel(
    x_ref: Any,
    weights_ref: Any,
    *refs: Any,
    spec: DepthwiseConvSpec,
    tiling: Tiling,
    interpreting: bool,
) -> None:
    """Activated sums; or, with the gradient of those given, the gradient of the plain sums.

    Refs: pixels [B * h * w, D], weights [9, D], perhaps gradient [B * h * w, D]; result.
    """
    *grad_refs, out_ref = refs
    tile = _Tile(spec, tiling, *_locate(spec, tiling), interpreting)
    grads = [tile.ahead(ref) for ref in grad_refs]
    weights = tile.weights(weights_ref)
    rows = _rows(spec, tiling)

    def finish(row: int, out: Any) -> None:
        if spec.activation == "silu":
            gate = pallas_compat.sigmoid(out, interpreting=interpreting)
            out = grads[0][row] * (gate + out * gate * (1.0 - gate)) if grads else out * gate
        tile.write(out_ref, row, out)

    sums: dict[int, Any] = {}
    for row, triple in tile.neighbours(x_ref):
        for grad in grads:
            grad.load(row)
        for i in range(3):
            _add(sums, row + 1 - i, rows, zip(triple, weights[i], strict=True))
        if row > 0:
            finish(row - 1, sums.pop(row - 1))
    for row, out in sums.items():
        finish(row, out)


def _add(sums: dict[int, Any], row: int, rows: int, factors: Any) -> None:
    """Adds products to the sum of a row, if it is one of the band's."""
    if 0 <= row < rows:
        for a, b in factors:
            if a is not None:
                sums[row] = sums[row] + a * b if row in sums else a * b


def _gradient_kernel(
    x_ref: Any,
    weights_ref: Any,
    grad_ref: Any,
    grad_x_ref: Any,
    grad_weights_ref: Any,
    *,
    spec: DepthwiseConvSpec,
    tiling: Tiling,
    interpreting: bool,
) -> None:
    """Gradients of pixels and, for each strip and band, of weights; activation left out.

    Refs: pixels [B * h * w, D], weights [9, D], gradient [B * h * w, D]; gradient of the pixels,
    gradient of the weights [strips * bands, 9, D].

    Both need the same shifted gradients: x[p] meets grad[q] by weight [i, j] if p = q + (i, j) - 1.
    """
    strip, band, channel_block = _locate(spec, tiling)
    rows = _rows(spec, tiling)
    strips = tiling.strips or tiling.tiles(spec)

    def walk(step: Any, so_far: tuple[Any, ...]) -> tuple[Any, ...]:
        tile = _Tile(spec, tiling, step * strips + strip, band, channel_block, interpreting)
        totals = list(so_far)
        sums: dict[int, Any] = {}
        pixels = tile.ahead(x_ref)
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

    tile = _Tile(spec, tiling, strip, band, channel_block, interpreting)
    weights = tile.weights(weights_ref)
    totals = (jnp.zeros(tile.shape, jnp.float32),) * 9
    if strips == tiling.tiles(spec):
        totals = walk(0, totals)
    else:
        steps = (tiling.tiles(spec) - strip + strips - 1) // strips
        totals = jax.lax.fori_loop(0, steps, walk, totals)
    part = strip * tiling.bands(spec) + band
    for n, total in enumerate(totals):
        channels = channel_block * tiling.channels + jnp.arange(tiling.channels)
        mask = channels < spec.channels if spec.channels % tiling.channels else None
        index = (part, n, channels)
        total = jnp.sum(total, axis=0)
        pallas_compat.store(grad_weights_ref, index, total, mask, interpreting=interpreting)


def convolution(
    spec: DepthwiseConvSpec, tiling: Tiling, x: Any, kernel: Any, grad: Any | None = None
) -> Any:
    """The operator; or, given the gradient of its result, that of the sums before activation.

    Args:
        spec: The call.
        tiling: Of the launch.
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
        _convolution_kernel, name, spec, tiling, [jax.ShapeDtypeStruct(pixels, spec.dtype)]
    )(*inputs)
    return out.reshape(x.shape)


def gradients(
    spec: DepthwiseConvSpec, tiling: Tiling, x: Any, kernel: Any, grad: Any
) -> tuple[Any, Any]:
    """Gradients of x and kernel, given that of the sums before activation [B, h, w, D]."""
    pixels = (spec.batch * spec.height * spec.width, spec.channels)
    parts = (tiling.strips or tiling.tiles(spec)) * tiling.bands(spec)
    grad_x, grad_weights = _launch(
        _gradient_kernel,
        "depthwise_conv_gradient",
        spec,
        tiling,
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
    tiling: Tiling,
    outs: list[jax.ShapeDtypeStruct],
) -> Callable[..., Any]:
    return pallas_compat.triton_call(
        functools.partial(kernel, spec=spec, tiling=tiling),
        name=name,
        programs=tiling.programs(spec),
        out_shape=outs,
        num_warps=tiling.num_warps,
        num_stages=1,
    )
