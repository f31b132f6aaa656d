"""SwiGLU's gate in Pallas kernels for CUDA GPUs: one pass over memory forward, one backward."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core import pallas_compat
from kernels_pallas.swiglu.spec import SwigluSpec


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut.

    Attributes:
        block: Outputs per program, a power of two. 8 per thread are one 16-byte access to each
            bfloat16 array; with 32 registers a thread, that leaves an SM full of threads.
        num_warps: Warps per program.
    """

    block: int = 1024
    num_warps: int = 4


def supports(spec: SwigluSpec) -> str | None:
    """Serves bfloat16 and float32."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x must be bfloat16 or float32, got {spec.dtype}"
    if spec.rows == 0:
        return "there is nothing to launch for no rows"
    if spec.width * Tiling().block >= 2**31:
        return f"a width of {spec.width} is beyond its 32-bit indices"
    return None


class _Call(NamedTuple):
    """What is static."""

    spec: SwigluSpec
    forward: Tiling
    backward: Tiling


def swiglu(
    spec: SwigluSpec,
    x: Float[Array, "... X"],
    *,
    forward: Tiling = Tiling(),
    backward: Tiling = Tiling(),
) -> Float[Array, "... I"]:
    """See `kernels_pallas.swiglu.api.swiglu`."""
    out = _gate(_Call(spec, forward, backward), x.reshape(spec.rows, 2 * spec.width))
    return out.reshape(*x.shape[:-1], spec.width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gate(call: _Call, x: Any) -> Any:
    return _forward(call, x)


def _gate_forward(call: _Call, x: Any) -> tuple[Any, Any]:
    return _forward(call, x), x


def _gate_backward(call: _Call, x: Any, grad_out: Any) -> tuple[Any]:
    [grad_x] = _backward(call, x, grad_out)
    return (grad_x,)


_gate.defvjp(_gate_forward, _gate_backward, optimize_remat=True)


def _place(spec: SwigluSpec, block: int) -> tuple[Any, Any, Any]:
    """Rows, columns and mask of a program's outputs: `block` neighbours in memory, any width.

    They are counted from the last program that began a row, so that 32 bits hold them however
    many outputs there are. The compiler sees that runs of columns stay in a row as far as the
    width is a multiple of a power of two, and divides once per access.
    """
    program = pallas_compat.program_id(0)
    period, place = pallas_compat.divide(program, spec.width)
    outputs = place * block + jnp.arange(block, dtype=jnp.int32)
    further, columns = pallas_compat.divide(outputs, spec.width)
    rows = period * block + further
    mask = None if spec.rows * spec.width % block == 0 else rows < spec.rows
    return rows, columns, mask


def _programs(spec: SwigluSpec, block: int) -> int:
    return -(-spec.rows * spec.width // block)


def _forward_kernel(
    x_ref: Any, out_ref: Any, *, spec: SwigluSpec, block: int, interpreting: bool
) -> None:
    """Refs: x [N, 2I]; output [N, I]."""
    load = functools.partial(pallas_compat.load, x_ref, interpreting=interpreting)
    rows, columns, mask = _place(spec, block)
    gate = load((rows, columns), mask).astype(jnp.float32)
    y = load((rows, columns + spec.width), mask).astype(jnp.float32)
    out = gate * pallas_compat.sigmoid(gate, interpreting=interpreting) * y
    pallas_compat.store(out_ref, (rows, columns), out, mask, interpreting=interpreting)


def _forward(call: _Call, x: Any) -> Any:
    spec, tiling = call.spec, call.forward
    [out] = pallas_compat.triton_call(
        functools.partial(_forward_kernel, spec=spec, block=tiling.block),
        name="swiglu_forward",
        programs=_programs(spec, tiling.block),
        out_shape=[jax.ShapeDtypeStruct((spec.rows, spec.width), spec.dtype)],
        num_warps=tiling.num_warps,
        num_stages=1,
    )(x)
    return out


def _backward_kernel(
    x_ref: Any,
    grad_out_ref: Any,
    grad_x_ref: Any,
    out_ref: Any = None,
    *,
    spec: SwigluSpec,
    block: int,
    interpreting: bool,
) -> None:
    """Refs: x [N, 2I], gradient of the output [N, I]; gradient of x [N, 2I], maybe output [N, I].

    Outputs may be the inputs' memory: what a program writes, it alone has read, and before.
    """
    load = functools.partial(pallas_compat.load, interpreting=interpreting)
    store = functools.partial(pallas_compat.store, interpreting=interpreting)
    rows, columns, mask = _place(spec, block)
    gate = load(x_ref, (rows, columns), mask).astype(jnp.float32)
    y = load(x_ref, (rows, columns + spec.width), mask).astype(jnp.float32)
    grad_out = load(grad_out_ref, (rows, columns), mask).astype(jnp.float32)
    sigmoid = pallas_compat.sigmoid(gate, interpreting=interpreting)
    silu = gate * sigmoid
    grad_gate = grad_out * y * (sigmoid + silu * (1.0 - sigmoid))
    store(grad_x_ref, (rows, columns), grad_gate, mask)
    store(grad_x_ref, (rows, columns + spec.width), grad_out * silu, mask)
    if out_ref is not None:
        store(out_ref, (rows, columns), silu * y, mask)


def _backward(call: _Call, x: Any, grad_out: Any, *, with_output: bool = False) -> Any:
    spec, tiling = call.spec, call.backward
    outputs = [x, grad_out] if with_output else [x]
    return pallas_compat.triton_call(
        functools.partial(_backward_kernel, spec=spec, block=tiling.block),
        name="swiglu_backward_and_output" if with_output else "swiglu_backward",
        programs=_programs(spec, tiling.block),
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like in outputs],
        num_warps=tiling.num_warps,
        num_stages=1,
        # XLA copies an input that is needed afterwards; in a training step neither is.
        aliases={0: 0, 1: 1} if with_output else None,
    )(x, grad_out)


def forward(
    spec: SwigluSpec, x: Float[Array, "N X"], *, tiling: Tiling = Tiling()
) -> Float[Array, "N I"]:
    """Launches the forward kernel; has no derivative."""
    return _forward(_Call(spec, forward=tiling, backward=tiling), x)


def backward_and_output(
    spec: SwigluSpec,
    x: Float[Array, "N X"],
    grad_out: Float[Array, "N I"],
    *,
    tiling: Tiling = Tiling(),
) -> tuple[Float[Array, "N X"], Float[Array, "N I"]]:
    """The gradient of x, and the output again, for those who have kept x alone: one pass."""
    call = _Call(spec, forward=tiling, backward=tiling)
    grad_x, out = _backward(call, x, grad_out, with_output=True)
    return grad_x, out
