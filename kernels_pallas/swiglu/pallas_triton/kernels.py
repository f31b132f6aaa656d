"""The kernels: one pass over memory forward, one backward."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.integers import cdiv
from ...core.types import Block, Mask, Ref
from ..spec import SwigluSpec
from .config import KernelConfig


def locate(spec: SwigluSpec, block: int, program: jax.Array) -> tuple[Block, Block, Mask]:
    """Returns rows, columns and mask of a program's outputs: `block` neighbours in memory.

    They are counted from the last program that began a row, so 32 bits hold them however many
    outputs there are. The compiler sees that runs of columns stay in a row as far as the width is
    a multiple of a power of two, and divides once per access.
    """
    period, place = triton.divide(program, spec.width)
    outputs = place * block + jnp.arange(block, dtype=jnp.int32)
    further, columns = triton.divide(outputs, spec.width)
    rows = period * block + further
    mask = None if spec.rows * spec.width % block == 0 else rows < spec.rows
    return rows, columns, mask


def _forward_kernel(x_ref: Ref, out_ref: Ref, *, spec: SwigluSpec, block: int) -> None:
    """Computes the output.

    Refs: x [N, 2I]; output [N, I].
    """
    rows, columns, mask = locate(spec, block, triton.program_id(0))
    gate = triton.load(x_ref, (rows, columns), mask).astype(jnp.float32)
    up = triton.load(x_ref, (rows, columns + spec.width), mask).astype(jnp.float32)
    triton.store(out_ref, (rows, columns), gate * triton.sigmoid(gate) * up, mask)


def forward(spec: SwigluSpec, config: KernelConfig, x: Float[Array, "N X"]) -> Float[Array, "N I"]:
    """Launches the forward kernel."""
    [out] = triton.triton_call(
        functools.partial(_forward_kernel, spec=spec, block=config.block),
        name="swiglu_forward",
        programs=cdiv(spec.rows * spec.width, config.block),
        out_shape=[jax.ShapeDtypeStruct((spec.rows, spec.width), spec.dtype)],
        num_warps=config.num_warps,
        num_stages=1,
    )(x)
    return out


def _backward_kernel(
    x_ref: Ref,
    grad_out_ref: Ref,
    grad_x_ref: Ref,
    out_ref: Ref | None = None,
    *,
    spec: SwigluSpec,
    block: int,
) -> None:
    """Computes the gradient, and also the output if there is a reference for it.

    Refs: x [N, 2I], gradient of the output [N, I]; gradient of x [N, 2I], output [N, I].

    Outputs may share the memory of inputs: a program writes only what no other program reads, and
    after it has read it.
    """
    rows, columns, mask = locate(spec, block, triton.program_id(0))
    gate = triton.load(x_ref, (rows, columns), mask).astype(jnp.float32)
    up = triton.load(x_ref, (rows, columns + spec.width), mask).astype(jnp.float32)
    grad_out = triton.load(grad_out_ref, (rows, columns), mask).astype(jnp.float32)
    sigmoid = triton.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad_out * up * (sigmoid + silu * (1.0 - sigmoid))
    triton.store(grad_x_ref, (rows, columns), grad_gate, mask)
    triton.store(grad_x_ref, (rows, columns + spec.width), grad_out * silu, mask)
    if out_ref is not None:
        triton.store(out_ref, (rows, columns), silu * up, mask)


def backward(
    spec: SwigluSpec,
    config: KernelConfig,
    x: Float[Array, "N X"],
    grad_out: Float[Array, "N I"],
) -> Float[Array, "N X"]:
    """Launches the backward kernel; returns the gradient of x."""
    [grad_x] = _backward(spec, config, x, grad_out, with_output=False)
    return grad_x


def backward_and_output(
    spec: SwigluSpec,
    config: KernelConfig,
    x: Float[Array, "N X"],
    grad_out: Float[Array, "N I"],
) -> tuple[Float[Array, "N X"], Float[Array, "N I"]]:
    """Computes the gradient of x and recomputes the output, in one pass.

    This is for callers that keep x for the backward pass, and not the output.
    """
    grad_x, out = _backward(spec, config, x, grad_out, with_output=True)
    return grad_x, out


def _backward(
    spec: SwigluSpec, config: KernelConfig, x: Array, grad_out: Array, *, with_output: bool
) -> Sequence[Array]:
    outputs = [x, grad_out] if with_output else [x]
    return triton.triton_call(
        functools.partial(_backward_kernel, spec=spec, block=config.block),
        name="swiglu_backward_and_output" if with_output else "swiglu_backward",
        programs=cdiv(spec.rows * spec.width, config.block),
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like in outputs],
        num_warps=config.num_warps,
        num_stages=1,
        # XLA copies an input that is needed afterwards; in a training step neither is.
        aliases={0: 0, 1: 1} if with_output else None,
    )(x, grad_out)
