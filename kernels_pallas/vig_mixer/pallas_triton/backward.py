"""Backward kernel of the blend."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs, launch
from ..spec import MixerInputs, MixerSpec
from .blend import blend, blend_inputs
from .config import BACKWARD, BlendConfig
from .rows import RowLoop, padded_width


class BlendGradients(NamedTuple):
    """Gradients of the blend's inputs.

    Attributes:
        total: Of the scans' sum [B, T, H, V].
        local: Of the local map [B, T, D].
        projected: Of `projected` [B, T, E]. Only the gate's columns are written; the rest is
            undefined.
        gate_bias: [D].
        scan_scale: [V].
        local_scale: [V].
    """

    total: jax.Array
    local: jax.Array
    projected: jax.Array
    gate_bias: jax.Array
    scan_scale: jax.Array
    local_scale: jax.Array


def backward(
    spec: MixerSpec,
    total: jax.Array,
    inputs: MixerInputs,
    grad: jax.Array,
    *,
    config: BlendConfig = BACKWARD,
) -> tuple[jax.Array, BlendGradients]:
    """Computes the gradients of the blend, and the blend again.

    Args:
        spec: The call.
        total: Sum of the scans [B, T, H, V], consumed: the blend is written to its memory.
        inputs: Arrays of the operator.
        grad: Gradient of the blend [B, T, D].
        config: Tiling of the kernel.

    Returns:
        The blend [B, T, D] and the gradients.
    """
    loop = RowLoop.from_config(spec, config)
    arrays = blend_inputs(spec, [total], inputs)
    rows = jax.ShapeDtypeStruct((spec.rows, spec.value_width), spec.dtype)
    padded = padded_width(spec)
    sums = jax.ShapeDtypeStruct((loop.programs, spec.width + 2 * padded), jnp.float32)
    columns = jax.ShapeDtypeStruct(arrays["projected"].shape, spec.dtype)
    results = launch(
        functools.partial(_kernel, loop=loop),
        name="vig_mixer_blend_backward",
        programs=loop.programs,
        inputs={**arrays, "grad": grad.astype(spec.dtype).reshape(rows.shape)},
        outputs={
            "blend": rows,
            "grad_total": rows,
            "grad_local": rows,
            "grad_projected": columns,
            "sums": sums,
        },
        num_warps=config.num_warps,
        num_stages=1,
        # XLA copies the array if it is needed afterwards, which is not so in a training step.
        start_from={"blend": arrays["scans"][0]},
    )
    added = jnp.sum(results["sums"], axis=0)
    grad_gate_bias, *grad_scales = jnp.split(added, (spec.width, spec.width + padded))
    return results["blend"].reshape(inputs.local.shape), BlendGradients(
        total=results["grad_total"].reshape(total.shape),
        local=results["grad_local"].reshape(inputs.local.shape),
        projected=results["grad_projected"].reshape(inputs.projected.shape),
        gate_bias=grad_gate_bias.astype(inputs.gate_bias.dtype),
        scan_scale=grad_scales[0][: spec.value_width].astype(inputs.scan_scale.dtype),
        local_scale=grad_scales[1][: spec.value_width].astype(inputs.local_scale.dtype),
    )


def _kernel(ref: Refs, *, loop: RowLoop) -> None:
    """Writes the gradients of a program's rows, and the sums of its rows' gradients of weights.

    "blend" may be the memory of "scans": a program writes only what it alone has read before.
    "sums" [D + 2 V], V rounded up to a power of two, are the program's addends to the gradients of
    the gate's bias and of the two scales.
    """
    spec, program = loop.spec, triton.program_id(0)

    def step(n, sums):
        rows = loop.block(program, n)
        grad = rows.read(ref["grad"])
        x = blend(spec, rows, ref)
        out = x.blended
        if spec.activation:
            share = triton.sigmoid(out)
            grad = grad * share * (1.0 + out * (1.0 - share))
            out = out * share
        rows.write(ref["blend"], out)
        grad_gate = grad * (x.scan.normed - x.local.normed) * x.gate * (1.0 - x.gate)
        rows.write_gate(ref["grad_projected"], grad_gate)
        grad_scan_normed, grad_local_normed = grad * x.gate, grad * (1.0 - x.gate)
        added = [grad_gate]
        for norm, grad_normed, scale_ref, grad_ref in (
            (x.scan, grad_scan_normed, ref["scan_scale"], ref["grad_total"]),
            (x.local, grad_local_normed, ref["local_scale"], ref["grad_local"]),
        ):
            scale = rows.read_scale(scale_ref)
            mean = jnp.sum(grad_normed * norm.normed, axis=1)[:, None] / spec.value_width
            grad_value = norm.factor * (grad_normed * scale - norm.value * norm.factor * mean)
            rows.write(grad_ref, grad_value)
            added.append(grad_normed * norm.value * norm.factor)
        return jax.tree.map(jnp.add, sums, added)

    zero = jnp.zeros((loop.rows, padded_width(spec)), jnp.float32)
    gate, *scales = jax.lax.fori_loop(0, loop.steps, step, [zero] * 3)
    _write_sums(ref, loop, gate, scales)


def _write_sums(ref: Refs, loop: RowLoop, gate: jax.Array, scales: list[jax.Array]) -> None:
    """Adds up a program's rows [rows, V], those of `gate` by head, and writes the sums."""
    spec, padded = loop.spec, padded_width(loop.spec)
    columns = jnp.arange(padded)
    head = loop.block(triton.program_id(0), 0).head

    def write(start, rows, mask):
        index = (triton.program_id(0), start + columns)
        triton.store(ref["sums"], index, jnp.sum(rows, 0), mask)

    for number in range(spec.heads):
        rows = jnp.where(head == number, gate, 0.0)
        mask = columns < spec.value_width if padded != spec.value_width else None
        write(number * spec.value_width, rows, mask)
    for number, rows in enumerate(scales):
        write(spec.width + number * padded, rows, None)
