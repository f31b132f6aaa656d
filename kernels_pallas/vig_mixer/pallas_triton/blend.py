"""Kernels of what follows the scan: two norms and the gate that blends them, and the gradients.

A program takes some rows, a row being the V channels of one head of one token. Every array is read
and written once; the gate's logits and their gradients are columns of `projected` and its gradient.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.vig_mixer.spec import MixerSpec

# Elements of each array that a program works on at a time, and most programs: six and four for each
# multiprocessor of an H200 fill it, more would have to wait for their turn. The backward pass has
# twice the values to hold in registers, and each of its programs leaves sums for XLA to add up.
_BLOCK = 1024
_FORWARD_PROGRAMS = 792
_BACKWARD_PROGRAMS = 528
_NUM_WARPS = 4


class _Block:
    """Some rows in arrays [B * T * H, V] and in columns of [B * T, 3 D + R]."""

    def __init__(self, spec: MixerSpec, first: Any, count: int, ragged: bool, interpreting: bool):
        """`count` rows from `first` on; `ragged` if some may be past the last."""
        self._interpreting = interpreting
        rows = first + jnp.arange(count)[:, None]
        self.columns = jnp.arange(_padded(spec))[None, :]
        token, self.head = rows // spec.heads, rows % spec.heads
        self._head = self.head * spec.value_width + self.columns
        gate = spec.starts["gate"] + self._head
        self._plain = (rows, self.columns)
        self._gate = (token, gate)
        mask = _value_mask(spec, self.columns)
        if ragged:
            mask = pallas_compat.both(rows < _rows(spec), mask)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (count, _padded(spec)))
        self._mask = mask

    def read(self, ref: Any, *, gate: bool = False) -> Any:
        """[rows, V] in float32, zero outside."""
        index = self._gate if gate else self._plain
        value = pallas_compat.load(ref, index, self._mask, interpreting=self._interpreting)
        return value.astype(jnp.float32)

    def read_bias(self, ref: Any) -> Any:
        """[rows, V] of a bias [D] in float32."""
        index = (self._head,)
        bias = pallas_compat.load(ref, index, self._mask, interpreting=self._interpreting)
        return bias.astype(jnp.float32)

    def write(self, ref: Any, value: Any, *, gate: bool = False) -> None:
        """Stores [rows, V]."""
        index = self._gate if gate else self._plain
        pallas_compat.store(ref, index, value, self._mask, interpreting=self._interpreting)


def _rows(spec: MixerSpec) -> int:
    return spec.batch * spec.tokens * spec.heads


def _padded(spec: MixerSpec) -> int:
    return pallas_compat.power_of_two(spec.value_width)


def _value_mask(spec: MixerSpec, columns: Any) -> Any:
    return columns < spec.value_width if _padded(spec) != spec.value_width else None


class _Blend(NamedTuple):
    """Values on the way to the result [rows, V], or [rows, 1] of a norm's factor."""

    scan: Any
    scan_factor: Any
    scan_normed: Any
    local: Any
    local_factor: Any
    local_normed: Any
    gate: Any
    blended: Any


def _blend(spec: MixerSpec, rows: _Block, refs: Sequence[Any], interpreting: bool) -> _Blend:
    *scan_refs, local_ref, projected_ref, gate_bias_ref, scan_scale_ref, local_scale_ref = refs
    sigmoid = functools.partial(pallas_compat.sigmoid, interpreting=interpreting)

    def normed(x, ref):
        mask = _value_mask(spec, rows.columns)
        scale = pallas_compat.load(ref, (rows.columns,), mask, interpreting=interpreting)
        mean = jnp.sum(x * x, axis=1)[:, None] / spec.value_width
        factor = jax.lax.rsqrt(mean + spec.epsilon)
        return factor, x * factor * scale.astype(jnp.float32)

    parts = [rows.read(ref) for ref in scan_refs]
    local = rows.read(local_ref)
    gate = sigmoid(rows.read(projected_ref, gate=True) + rows.read_bias(gate_bias_ref))
    scan = parts[0] + parts[1] if len(parts) > 1 else parts[0]
    scan_factor, scan_normed = normed(scan, scan_scale_ref)
    local_factor, local_normed = normed(local, local_scale_ref)
    blended = local_normed + gate * (scan_normed - local_normed)
    return _Blend(scan, scan_factor, scan_normed, local, local_factor, local_normed, gate, blended)


class _Walk(NamedTuple):
    """How programs take the rows: side by side, in steps.

    A row of a program's block is of the same head at each step.
    """

    rows: int  # of a block
    programs: int
    steps: int

    def blocks(self, spec: MixerSpec, interpreting: bool) -> Callable[[Any], _Block]:
        """The program's block of each step."""
        program = pallas_compat.program_id(0)
        ragged = self.rows * self.programs * self.steps != _rows(spec)

        def block(step):
            first = (step * self.programs + program) * self.rows
            return _Block(spec, first, self.rows, ragged, interpreting)

        return block


def _walk(spec: MixerSpec, most_programs: int) -> _Walk:
    count = max(1, _BLOCK // _padded(spec))
    blocks = -(-_rows(spec) // count)
    whole = spec.heads // math.gcd(spec.heads, count)
    programs = -(-min(blocks, most_programs) // whole) * whole
    return _Walk(count, programs, -(-blocks // programs))


def _forward_kernel(*refs: Any, spec: MixerSpec, keeps_sum: bool, interpreting: bool) -> None:
    """Refs: scans, local map, projected, gate bias, both scales; result, perhaps the scans' sum."""
    *inputs, out_ref = refs[:-1] if keeps_sum else refs
    walk = _walk(spec, _FORWARD_PROGRAMS)
    block = walk.blocks(spec, interpreting)

    def step(n, _):
        rows = block(n)
        blend = _blend(spec, rows, inputs, interpreting)
        if keeps_sum:
            rows.write(refs[-1], blend.scan)
        out = blend.blended
        if spec.activation:
            out = out * pallas_compat.sigmoid(out, interpreting=interpreting)
        rows.write(out_ref, out)

    jax.lax.fori_loop(0, walk.steps, step, None)


def forward(
    spec: MixerSpec,
    scans: Sequence[Any],
    projected: Any,
    local: Any,
    gate_bias: Any,
    scan_scale: Any,
    local_scale: Any,
    *,
    keeps_sum: bool,
) -> tuple[Any, Any]:
    """The blend [B, T, D] of the scans' sum with the local map.

    With `keeps_sum` also the sum [B, T, H, V], which takes the memory of the first scan, consumed.
    """
    keeps_sum = keeps_sum and len(scans) > 1
    outs = pallas_compat.triton_call(
        functools.partial(_forward_kernel, spec=spec, keeps_sum=keeps_sum),
        name="vig_mixer_blend",
        programs=_walk(spec, _FORWARD_PROGRAMS).programs,
        out_shape=[jax.ShapeDtypeStruct(_flat(spec), spec.dtype)] * (1 + keeps_sum),
        num_warps=_NUM_WARPS,
        num_stages=1,
        aliases={0: 1} if keeps_sum else None,
    )(*_inputs(spec, scans, projected, local, gate_bias, scan_scale, local_scale))
    total = outs[1].reshape(scans[0].shape) if keeps_sum else scans[0]
    return outs[0].reshape(local.shape), total


def _flat(spec: MixerSpec) -> tuple[int, int]:
    return _rows(spec), spec.value_width


def _inputs(
    spec: MixerSpec, scans: Sequence[Any], projected: Any, local: Any, *weights: Any
) -> list[Any]:
    flat = [x.reshape(_flat(spec)) for x in (*scans, local)]
    return [*flat, projected.reshape(-1, projected.shape[2]), *weights]


def _backward_kernel(*refs: Any, spec: MixerSpec, interpreting: bool) -> None:
    """Gradients of a program's rows.

    Refs: the scans' sum, local map, projected, gate bias, both scales, gradient of the result;
    the result, which may be the sum's memory: what a program writes, it alone has read, and before;
    gradients of the sum, of the local map, of projected (the gate's columns), and each program's
    part [D + 2 V] of those of the gate bias and of the scales, V rounded up to a power of two.
    """
    *inputs, grad_ref, out_ref, grad_scan_ref, grad_local_ref, grad_projected_ref, part_ref = refs
    walk = _walk(spec, _BACKWARD_PROGRAMS)
    block = walk.blocks(spec, interpreting)

    def step(n, sums):
        rows = block(n)
        grad = rows.read(grad_ref)
        x = _blend(spec, rows, inputs, interpreting)
        out = x.blended
        if spec.activation:
            share = pallas_compat.sigmoid(out, interpreting=interpreting)
            grad = grad * share * (1.0 + out * (1.0 - share))
            out = out * share
        rows.write(out_ref, out)
        grad_gate = grad * (x.scan_normed - x.local_normed) * x.gate * (1.0 - x.gate)
        rows.write(grad_projected_ref, grad_gate, gate=True)
        parts = [grad_gate]
        for value, factor, normed, grad_normed, scale_ref, grad_out_ref in (
            (x.scan, x.scan_factor, x.scan_normed, grad * x.gate, inputs[-2], grad_scan_ref),
            (
                x.local,
                x.local_factor,
                x.local_normed,
                grad * (1.0 - x.gate),
                inputs[-1],
                grad_local_ref,
            ),
        ):
            mask = _value_mask(spec, rows.columns)
            scale = pallas_compat.load(scale_ref, (rows.columns,), mask, interpreting=interpreting)
            scale = scale.astype(jnp.float32)
            mean = jnp.sum(grad_normed * normed, axis=1)[:, None] / spec.value_width
            rows.write(grad_out_ref, factor * (grad_normed * scale - value * factor * mean))
            parts.append(grad_normed * value * factor)
        return jax.tree.map(jnp.add, sums, parts)

    zero = jnp.zeros((walk.rows, _padded(spec)), jnp.float32)
    gate, *scales = jax.lax.fori_loop(0, walk.steps, step, [zero] * 3)

    columns, head = jnp.arange(_padded(spec)), block(0).head

    def write(start, part, mask):
        index = (pallas_compat.program_id(0), start + columns)
        pallas_compat.store(part_ref, index, jnp.sum(part, 0), mask, interpreting=interpreting)

    for number in range(spec.heads):
        part = jnp.where(head == number, gate, 0.0)
        write(number * spec.value_width, part, _value_mask(spec, columns))
    for number, part in enumerate(scales):
        write(spec.width + number * _padded(spec), part, None)


def backward(
    spec: MixerSpec,
    scan: Any,
    projected: Any,
    local: Any,
    gate_bias: Any,
    scan_scale: Any,
    local_scale: Any,
    grad: Any,
) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """The blend [B, T, D] again, and gradients of what it was made of.

    The blend takes the memory of the scans' sum `scan` [B, T, H, V], consumed. Gradients are those
    of the sum, the local map, projected, the gate bias, and both scales. Of the gradient of
    `projected` only the columns of the gate are written; the rest is undefined.
    """
    programs = _walk(spec, _BACKWARD_PROGRAMS).programs
    padded = _padded(spec)
    flat = jax.ShapeDtypeStruct(_flat(spec), spec.dtype)
    columns = jax.ShapeDtypeStruct((spec.batch * spec.tokens, projected.shape[2]), spec.dtype)
    part = jax.ShapeDtypeStruct((programs, spec.width + 2 * padded), jnp.float32)
    out, grad_scan, grad_local, grad_projected, parts = pallas_compat.triton_call(
        functools.partial(_backward_kernel, spec=spec),
        name="vig_mixer_blend_backward",
        programs=programs,
        out_shape=[flat, flat, flat, columns, part],
        num_warps=_NUM_WARPS,
        num_stages=1,
        # XLA copies an input that is needed afterwards; in a training step it is not.
        aliases={0: 0},
    )(
        *_inputs(spec, [scan], projected, local, gate_bias, scan_scale, local_scale),
        grad.astype(spec.dtype).reshape(flat.shape),
    )
    sums = jnp.sum(parts, axis=0)
    grad_gate_bias, *grad_scales = jnp.split(sums, (spec.width, spec.width + padded))
    return (
        out.reshape(local.shape),
        grad_scan.reshape(scan.shape),
        grad_local.reshape(local.shape),
        grad_projected.reshape(projected.shape),
        grad_gate_bias.astype(gate_bias.dtype),
        grad_scales[0][: spec.value_width].astype(scan_scale.dtype),
        grad_scales[1][: spec.value_width].astype(local_scale.dtype),
    )
