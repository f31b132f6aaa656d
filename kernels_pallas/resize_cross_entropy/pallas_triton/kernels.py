"""The kernel: sums of an image's loss and, on request, the gradient of its logits.

Four neighbouring logits surround a cell of s x s pixels, for a factor of s. Cell (a, b) of
[h + 1, w + 1] lies between rows a - 1 and a and columns b - 1 and b of the logits, and cells at a
border repeat it: half of their pixels are outside of the image. README.md has the mathematics.

The logits of a pixel are a list of parts of C classes each, in arrays [P pixels, C]. All parts have
the same layout, so that sums over parts are additions within a thread.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ...core import triton
from ...core.triton import divide
from ...core.types import Block, Mask, Ref
from ..spec import ResizeCrossEntropySpec
from .config import KernelConfig

_LN_2 = 1 / triton.LOG2_E
_LOWEST = -1e30  # finite, because weights may be zero
_Corners = list[list[Block]]  # of a cell: above left, above right, below left, below right; by part


def _kernel(*refs: Ref, spec: ResizeCrossEntropySpec, config: KernelConfig) -> None:
    """Serves the cells of a program.

    Refs: logits [B, h * w * K], labels [B, H * W]; the program's loss [B, (h + 1) * across] and
    hits; for the gradient, its sums for the columns of logits that it touches
    [B, (h + 1) * across * (cells + 1) * 2 * K], for the row above and the row below.
    """
    logits_ref, labels_ref, loss_ref, hits_ref, *gradient_refs = refs
    across = config.across(spec)
    image, program = divide(triton.program_id(0), (spec.rows + 1) * across)
    a, number = divide(program, across)
    classes = _classes(spec, config)
    rows = _clamped(a - 1, spec.rows), _clamped(a, spec.rows)

    def column(b: Any, slot: Any, sums: Sequence[Block]) -> None:
        """Stores what cells know of the gradient of column b - 1 of the logits."""
        if not gradient_refs:
            return
        above, below = sums[: len(classes)], sums[len(classes) :]
        # Cells at a border have the same row of logits above and below.
        above, below = (
            [jnp.where(a == spec.rows, x + y, x) for x, y in zip(above, below, strict=True)],
            [jnp.where(a == 0, x + y, y) for x, y in zip(above, below, strict=True)],
        )
        for row, parts in enumerate((above, below)):
            start = ((program * (config.cells + 1) + slot) * 2 + row) * spec.classes
            for (index, mask), part in zip(classes, parts, strict=True):
                triton.store(gradient_refs[0], (image, start + index), part, mask)

    def cell(n: Any, carry: Any) -> Any:
        b = number * config.cells + n
        corners = [
            _read(logits_ref, spec, classes, image, row * spec.columns + x)
            for row in rows
            for x in (_clamped(b - 1, spec.columns), _clamped(b, spec.columns))
        ]
        sums, left = carry
        pixels = functools.partial(_pixels, spec, config, labels_ref, corners, (image, a, b))
        sums, gradient = _repeat(
            config.chunks(spec),
            lambda chunk, state: pixels(chunk, *state),
            (sums, [[_zeros(1, config.part)] * len(classes)] * 4 if gradient_refs else None),
        )
        if gradient is None:
            return sums, left
        first, last = gradient[0] + gradient[2], gradient[1] + gradient[3]
        left = [x + y for x, y in zip(left, first, strict=True)]
        # So do cells at a border have the same column twice.
        ends = b == 0, b == spec.columns
        column(b, n, [jnp.where(ends[1], x + y, x) for x, y in zip(left, last, strict=True)])
        return sums, [jnp.where(ends[0], x + y, y) for x, y in zip(left, last, strict=True)]

    sums = (_zeros(config.pixels, 1), _zeros(config.pixels, config.part), _zeros(config.pixels, 1))
    left = [_zeros(1, config.part)] * (2 * len(classes)) if gradient_refs else []
    (log_sums, picked, hits), left = _repeat(config.cells, cell, (sums, left))
    column(None, config.cells, left)
    picked = jnp.sum(picked, axis=1)[:, None]
    index = image, _whole(program)
    triton.store(loss_ref, index, jnp.sum(log_sums - picked, axis=0)[None, :])
    triton.store(hits_ref, index, jnp.sum(hits, axis=0)[None, :])


def _pixels(
    spec: ResizeCrossEntropySpec,
    config: KernelConfig,
    labels_ref: Ref,
    corners: _Corners,
    place: tuple[Any, Any, Any],
    chunk: Any,
    sums: tuple[Block, Block, Block],
    gradient: _Corners | None,
) -> tuple[tuple[Block, Block, Block], _Corners | None]:
    """Adds a chunk of a cell's pixels to the sums, and to the gradient of the corners.

    Args:
        spec: The call.
        config: Of the kernel.
        labels_ref: The labels.
        corners: Logits [1, C] of the corners of the cell.
        place: The image, row and column of the cell.
        chunk: Number of the chunk.
        sums: Logarithms of sums of exponentials [P, 1], logits of the labels [P, C], both relative
            to the largest logit, and hits [P, 1].
        gradient: Of the corners [1, C], or None.
    """
    target, weights = _targets(spec, config, labels_ref, place, chunk)
    classes = [index for index, _ in _classes(spec, config)]
    full = [
        functools.reduce(jnp.add, [w * v for w, v in zip(weights, part, strict=True)])
        for part in zip(*corners, strict=True)
    ]
    top = jnp.max(functools.reduce(jnp.maximum, full), axis=1)[:, None]
    shifted = [z - top for z in full]
    first = [
        jnp.where(z == 0.0, index, spec.classes) for z, index in zip(shifted, classes, strict=True)
    ]
    exponentials = [triton.exp2(z * triton.LOG2_E) for z in shifted]
    total = jnp.sum(functools.reduce(jnp.add, exponentials), axis=1)[:, None]
    chosen = [target == index for index in classes]
    valid = target >= 0

    log_sums, picked, hits = sums
    log_sums = log_sums + jnp.where(valid, triton.log2(total) * _LN_2, 0.0)
    picked = functools.reduce(
        jnp.add,
        [jnp.where(is_it, z, 0.0) for is_it, z in zip(chosen, shifted, strict=True)],
        picked,
    )
    winner = jnp.min(functools.reduce(jnp.minimum, first), axis=1)[:, None]
    hits = hits + jnp.where(winner == target, 1.0, 0.0)
    sums = log_sums, picked, hits
    if gradient is None:
        return sums, None
    factor = jnp.where(valid, triton.reciprocal(total), 0.0)
    slopes = [
        e * factor + jnp.where(is_it, -1.0, 0.0)
        for is_it, e in zip(chosen, exponentials, strict=True)
    ]
    return sums, [
        [
            before + jnp.sum(weight * slope, axis=0)[None, :]
            for before, slope in zip(parts, slopes, strict=True)
        ]
        for parts, weight in zip(gradient, weights, strict=True)
    ]


def _targets(
    spec: ResizeCrossEntropySpec,
    config: KernelConfig,
    labels_ref: Ref,
    place: tuple[Any, Any, Any],
    chunk: Any,
) -> tuple[Block, list[Block]]:
    """Returns the classes of a chunk's pixels [P, 1], -1 for none, and the weights of the corners.

    Pixel (j, i) of a cell lies (j + 1/2) / s of the way from the row above to the row below for an
    even s. An odd factor has pixels at the logits themselves, and (j + 1) / s of the way.
    """
    image, a, b = place
    s = spec.factor
    pixel = chunk * config.pixels + jax.lax.broadcasted_iota(jnp.int32, (config.pixels, 1), 0)
    j, i = divide(pixel, s)
    y, x = a * s - s // 2 + j, b * s - s // 2 + i
    inside = (y >= 0) & (y < spec.height) & (x >= 0) & (x < spec.width)
    if s**2 % config.pixels:
        inside = inside & (pixel < s**2)
    label = triton.load(labels_ref, (image, y * spec.width + x), inside).astype(jnp.int32)
    label = label & 255
    valid = inside & (label != spec.ignore) & (label < spec.classes)
    shift = 0.5 if s % 2 == 0 else 1.0
    below, right = ((k.astype(jnp.float32) + shift) * (1 / s) for k in (j, i))
    above, left = 1.0 - below, 1.0 - right
    weights = [above * left, above * right, below * left, below * right]
    return jnp.where(valid, label, -1), weights


def _classes(spec: ResizeCrossEntropySpec, config: KernelConfig) -> list[tuple[Block, Mask]]:
    """Returns the numbers [1, C] of each part's classes, and the mask of those that exist."""
    parts = []
    for number in range(config.parts(spec)):
        index = number * config.part + jax.lax.broadcasted_iota(jnp.int32, (1, config.part), 1)
        ragged = (number + 1) * config.part > spec.classes
        parts.append((index, index < spec.classes if ragged else None))
    return parts


def _read(
    ref: Ref,
    spec: ResizeCrossEntropySpec,
    classes: Sequence[tuple[Block, Mask]],
    image: Any,
    position: Any,
) -> list[Block]:
    """Loads logits, float32, and a number below all others where there is no class."""
    parts = []
    for index, mask in classes:
        part = triton.load(ref, (image, position * spec.classes + index), mask)
        part = part.astype(jnp.float32)
        parts.append(part if mask is None else jnp.where(mask, part, _LOWEST))
    return parts


def _clamped(position: Any, length: int) -> Any:
    return jnp.minimum(jnp.maximum(position, 0), length - 1)


def _zeros(rows: int, columns: int) -> Block:
    return jnp.zeros((rows, columns), jnp.float32)


def _whole(scalar: Any) -> Block:
    """Returns a scalar as an index of shape [1, 1]."""
    return jnp.broadcast_to(scalar, (1, 1))


def _repeat(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """Loops, unless there is only one step."""
    return body(jnp.int32(0), start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def launch(
    spec: ResizeCrossEntropySpec,
    config: KernelConfig,
    logits: Float[Array, "B h w K"],
    labels: UInt8[Array, "B H W"],
    *,
    gradient: bool,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, "B h w K"] | None]:
    """Runs the kernel.

    Args:
        spec: The call.
        config: Of the kernel.
        logits: The logits.
        labels: The labels.
        gradient: Whether the gradient is computed.

    Returns:
        The loss and the hits of each image, and the gradient of its loss, float32, or None.
    """
    across = config.across(spec)
    programs = (spec.rows + 1) * across
    touched = (spec.rows + 1, across, config.cells + 1, 2, spec.classes)
    sums = jax.ShapeDtypeStruct((spec.batch, programs), jnp.float32)
    outs = [sums, sums]
    if gradient:
        numbers = programs * (config.cells + 1) * 2 * spec.classes
        outs.append(jax.ShapeDtypeStruct((spec.batch, numbers), jnp.float32))
    loss, hits, *columns = triton.triton_call(
        functools.partial(_kernel, spec=spec, config=config),
        name="resize_cross_entropy_gradient" if gradient else "resize_cross_entropy",
        programs=spec.batch * programs,
        out_shape=outs,
        num_warps=config.num_warps,
        num_stages=1,
    )(logits.reshape(spec.batch, -1), labels.reshape(spec.batch, -1))
    total = None
    if gradient:
        total = _combined(spec, columns[0].reshape(spec.batch, *touched))
    return jnp.sum(loss, axis=1), jnp.sum(hits, axis=1), total


def _combined(
    spec: ResizeCrossEntropySpec, columns: Float[Array, "B a P n 2 K"]
) -> Float[Array, "B h w K"]:
    """Adds what the programs know of each logit's gradient: four cells surround it.

    The last column of a program is the first one of the next.
    """
    B, rows, across, touched, _, K = columns.shape
    cells = touched - 1
    edges = [(0, 0, 0)] * columns.ndim
    edges[2], edges[3] = (1, -1, 0), (0, cells - 1, 0)
    last = jax.lax.pad(columns[:, :, :, cells:], jnp.float32(0), edges)
    total = (columns[:, :, :, :cells] + last).reshape(B, rows, across * cells, 2, K)
    total = total[:, :, 1 : spec.columns + 1]
    return total[:, :-1, :, 1] + total[:, 1:, :, 0]
