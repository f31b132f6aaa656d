"""A linear map with SwiGLU's gate in a Pallas kernel for CUDA GPUs: the product is never written.

That is for inference. A derivative needs the product again, so under differentiation XLA computes
it and `kernels_pallas.swiglu`'s kernels do the gate.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels_pallas.core import pallas_compat
from kernels_pallas.core.pallas_compat import both
from kernels_pallas.linear_swiglu.spec import LinearSwigluSpec
from kernels_pallas.swiglu import pallas_triton as swiglu_kernels
from kernels_pallas.swiglu.spec import SwigluSpec

CAPABILITIES = (9.0, 12.0)
"""From, and below: other GPUs have, or may have, too little shared memory for the tiles."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut; sizes are powers of two.

    Attributes:
        rows: Rows per program.
        columns: Outputs per row; twice as many columns of the product. 128 x 128 sums are 128
            registers of each of 128 threads, and leave room for a second program per
            multiprocessor, whose products go on while the first one's gates are computed.
        depth: Input features per step of the product.
        num_warps: Warps per program; each group of four takes a share of the rows.
        num_stages: Steps whose operands shared memory holds.
    """

    rows: int = 128
    columns: int = 64
    depth: int = 32
    num_warps: int = 4
    num_stages: int = 4


def supports(spec: LinearSwigluSpec) -> str | None:
    """Serves bfloat16 with widths that allow 16-byte accesses."""
    if spec.dtype != jnp.bfloat16:
        return f"x and kernel must be bfloat16, got {spec.dtype}"
    if spec.features % 16 or spec.width % 16:
        return f"D and I must be multiples of 16, got {spec.features} and {spec.width}"
    if spec.rows == 0:
        return "there is nothing to launch for no rows"
    if spec.rows > pallas_compat.MAX_ROWS:
        return f"there must be at most {pallas_compat.MAX_ROWS} rows"
    return None


def choose(spec: LinearSwigluSpec) -> Tiling:
    """The fastest of those measured at the widths of ViG; long products want deep steps."""
    if spec.features >= 512 and spec.features % 64 == 0:
        return Tiling(depth=64, num_stages=3)
    return Tiling()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class _Call(NamedTuple):
    """What is static."""

    spec: LinearSwigluSpec
    tiling: Tiling


def linear_swiglu(
    spec: LinearSwigluSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    *,
    tiling: Tiling | None = None,
) -> Float[Array, "... I"]:
    """See `kernels_pallas.linear_swiglu.api.linear_swiglu`."""
    call = _Call(spec, tiling or choose(spec))
    out = _linear_swiglu(call, x.reshape(spec.rows, spec.features), kernel)
    return out.reshape(*x.shape[:-1], spec.width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_swiglu(call: _Call, x: Any, kernel: Any) -> Any:
    return _fused(call, x, kernel)


def _linear_swiglu_forward(call: _Call, x: Any, kernel: Any) -> tuple[Any, Any]:
    spec = call.spec
    gate_spec = SwigluSpec(rows=spec.rows, width=spec.width, dtype=spec.dtype)

    def in_two(x, kernel):
        return swiglu_kernels.swiglu(gate_spec, jnp.matmul(x, kernel))

    return jax.vjp(in_two, x, kernel)


def _linear_swiglu_backward(call: _Call, pullback: Any, grad_out: Any) -> tuple[Any, Any]:
    return pullback(grad_out)


_linear_swiglu.defvjp(_linear_swiglu_forward, _linear_swiglu_backward, optimize_remat=True)


def _fused_kernel(
    x_ref: Any,
    kernel_ref: Any,
    out_ref: Any,
    *,
    spec: LinearSwigluSpec,
    tiling: Tiling,
    interpreting: bool,
) -> None:
    """Refs: x [N, D], kernel [D, 2I]; output [N, I].

    Programs that share rows of x are neighbours. Gate and y columns of an output stand in one
    product, side by side: of each, a thread has the same ones.
    """
    load = functools.partial(pallas_compat.load, interpreting=interpreting)
    steps = _ceil_div(spec.features, tiling.depth)
    program = pallas_compat.program_id(0)
    block, tile = pallas_compat.divide(program, _tiles(spec, tiling))
    rows = block * tiling.rows + jnp.arange(tiling.rows)[:, None]
    inside = None if spec.rows % tiling.rows == 0 else rows < spec.rows
    half = jnp.arange(2 * tiling.columns)[None, :]
    half, column = pallas_compat.divide(half, tiling.columns)

    def add_product(step: Any, total: Any) -> Any:
        features = step * tiling.depth + jnp.arange(tiling.depth)
        columns = tile * tiling.columns + column
        x_mask, kernel_mask = inside, None
        if spec.features % tiling.depth:
            x_mask = both(inside, features[None, :] < spec.features)
            kernel_mask = features[:, None] < spec.features
        if spec.width % tiling.columns:
            kernel_mask = both(kernel_mask, columns < spec.width)
        x = load(x_ref, (rows, features[None, :]), _full(x_mask, (tiling.rows, tiling.depth)))
        kernel = load(
            kernel_ref,
            (features[:, None], half * spec.width + columns),
            _full(kernel_mask, (tiling.depth, 2 * tiling.columns)),
        )
        return total + jnp.dot(x, kernel, preferred_element_type=jnp.float32)

    zeros = jnp.zeros((tiling.rows, 2 * tiling.columns), jnp.float32)
    gate, y = jnp.split(lax.fori_loop(0, steps, add_product, zeros), 2, axis=1)
    out = gate * pallas_compat.sigmoid(gate, interpreting=interpreting) * y
    columns = tile * tiling.columns + jnp.arange(tiling.columns)[None, :]
    mask = inside
    if spec.width % tiling.columns:
        mask = both(inside, columns < spec.width)
    mask = _full(mask, (tiling.rows, tiling.columns))
    pallas_compat.store(out_ref, (rows, columns), out, mask, interpreting=interpreting)


def _tiles(spec: LinearSwigluSpec, tiling: Tiling) -> int:
    return _ceil_div(spec.width, tiling.columns)


def _full(mask: Any, shape: tuple[int, int]) -> Any:
    return None if mask is None else jnp.broadcast_to(mask, shape)


def _fused(call: _Call, x: Any, kernel: Any) -> Any:
    spec, tiling = call
    [out] = pallas_compat.triton_call(
        functools.partial(_fused_kernel, spec=spec, tiling=tiling),
        name="linear_swiglu",
        programs=_ceil_div(spec.rows, tiling.rows) * _tiles(spec, tiling),
        out_shape=[jax.ShapeDtypeStruct((spec.rows, spec.width), spec.dtype)],
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        capabilities=CAPABILITIES,
    )(x, kernel)
    return out
