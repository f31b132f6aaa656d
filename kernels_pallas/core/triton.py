"""The Triton backend of Pallas: launching, memory access, and fast arithmetic.

This is the only file that imports the backend. Without it the file can still be imported, and
`unsupported` gives the reason for which no kernel can serve a call.

Inside of a kernel that is compiled, functions here emit Triton's operations. Elsewhere, in the
interpreter and outside of kernels, they are plain JAX.
"""

import contextvars
import functools
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from .device import Device
from .launch import is_interpreting, kernel_call
from .types import Block, Index, Mask, Ref

try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # deprecated since JAX 0.11
    plgpu = None  # type: ignore[assignment]

PLATFORMS = ("cuda",)
"""Platforms that kernels of the Triton backend are lowered for."""

MAX_ROWS = 2**31 - 2**16
"""Most rows that kernels count in 32 bits, those included that a program skips past the end."""

LOG2_E = math.log2(math.e)

if plgpu is None:
    logging.getLogger("kernels_pallas").warning(
        "JAX %s has no Triton backend of Pallas: implementations named 'pallas_triton' are not "
        "available, and others are used",
        jax.__version__,
    )

# JAX warns at each launch since 0.11. Users can do nothing about it.
warnings.filterwarnings(
    "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
)

program_id = pl.program_id
when = pl.when

_compiling = contextvars.ContextVar("kernels_pallas_triton_compiling", default=False)


def unsupported(
    device: Device | None, capabilities: tuple[float, float] = (8.0, math.inf)
) -> str | None:
    """Returns the reason for which kernels cannot be compiled for a device, or None.

    Args:
        device: The device, or None if it is not known yet.
        capabilities: The compute capabilities that are supported: from the first, and below the
            second.
    """
    if plgpu is None and not is_interpreting():
        return f"JAX {jax.__version__} has no Triton backend of Pallas"
    if device is not None:
        lowest, end = capabilities
        if not lowest <= device.compute_capability < end:
            return (
                f"compute capability {device.compute_capability} of the GPU is not in "
                f"[{lowest}, {end})"
            )
    return None


def triton_call(
    kernel: Callable[..., None],
    *,
    name: str,
    programs: int,
    out_shape: Sequence[jax.ShapeDtypeStruct],
    num_warps: int,
    num_stages: int,
    aliases: Mapping[int, int] | None = None,
) -> Callable[..., Any]:
    """Makes a function that launches a Triton kernel on a one-dimensional grid.

    Args:
        kernel: See `kernels_pallas.core.launch.kernel_call`.
        name: See there.
        programs: Length of the grid.
        out_shape: See there.
        num_warps: Warps per program.
        num_stages: Depth of Triton's software pipeline.
        aliases: See there.

    Raises:
        NotImplementedError: There are more programs than a GPU can number.
    """
    compiling = not is_interpreting()

    def traced(*refs: Ref) -> None:
        token = _compiling.set(compiling)
        try:
            kernel(*refs)
        finally:
            _compiling.reset(token)

    params = None
    if compiling:
        params = plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages)
    return kernel_call(
        traced,
        name=name,
        grid=(programs,),
        out_shape=out_shape,
        compiler_params=params,
        aliases=aliases,
    )


def load(ref: Ref, index: Index, mask: Mask = None) -> Block:
    """Loads elements of `ref` at broadcast indices; zero where the mask is False.

    Interpreted, elements outside of `ref` are NaN where the mask is True, or the largest integer.
    """
    if not _compiling.get():
        is_float = jnp.issubdtype(ref.dtype, jnp.floating)
        fill = jnp.nan if is_float else jnp.iinfo(ref.dtype).max
        value = ref[...].at[index].get(mode="fill", fill_value=fill, wrap_negative_indices=False)
        if mask is None:
            return value
        return jax.lax.select(
            jnp.broadcast_to(mask, value.shape), value, jax.lax.full_like(value, 0)
        )
    if mask is None:
        return plgpu.load(ref.at[index])
    return plgpu.load(ref.at[index], mask=mask, other=jnp.zeros((), ref.dtype))


def store(ref: Ref, index: Index, value: Block, mask: Mask = None) -> None:
    """Stores `value`, in the type of `ref`, at broadcast indices where the mask is True.

    Interpreted, all of `ref` becomes NaN if any of these elements is outside of it.
    """
    value = value.astype(ref.dtype)
    if _compiling.get():
        plgpu.store(ref.at[index], value, mask=mask)
        return
    outside = _outside(ref, index)
    array = ref[...]
    if mask is not None:
        outside &= mask
        # Masked elements get an index out of range, and such elements are dropped.
        first = jnp.broadcast_to(jnp.asarray(index[0], jnp.int32), mask.shape)
        first = jax.lax.select(mask, first, jax.lax.full_like(first, array.shape[0]))
        index = (first, *index[1:])
    array = array.at[index].set(value, mode="drop", wrap_negative_indices=False)
    spoilt = jax.lax.full_like(array, jnp.nan)
    ref[...] = jax.lax.select(jnp.any(outside), spoilt, array)


def _outside(ref: Ref, index: Index) -> jax.Array:
    """Returns True where broadcast indices are outside of `ref`."""
    wrong = [(i < 0) | (i >= size) for i, size in zip(index, ref.shape, strict=True)]
    return functools.reduce(jnp.logical_or, wrong)


def both(mask: Mask, other: Mask) -> Mask:
    """Returns the elements where two masks are True."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other


def divide(x: Any, by: int) -> tuple[Any, Any]:
    """Returns the quotient and the remainder of integers >= 0, in their type.

    Python's operators take several more instructions, for negative numbers.
    """
    divisor = np.array(by, x.dtype)
    return jax.lax.div(x, divisor), jax.lax.rem(x, divisor)


def barrier() -> None:
    """Makes what any thread of a program stored before visible to all of its threads."""
    if _compiling.get():
        plgpu.debug_barrier()


def exp2(x: Block) -> Block:
    """Computes 2**x in float32 by the hardware's approximation, relative error 2**-22.

    Denormal results are flushed to zero, which saves four instructions on each result.
    """
    return _approximate("ex2", x) if _compiling.get() else jnp.exp2(x)


def log2(x: Block) -> Block:
    """Computes the logarithm to base 2 in float32 by the hardware's approximation.

    The absolute error is 2**-22 for x in [1, 2].
    """
    return _approximate("lg2", x) if _compiling.get() else jnp.log2(x)


def reciprocal(x: Block) -> Block:
    """Computes 1 / x in float32 by the hardware's approximation, relative error 2**-23.

    Denormal results are flushed to zero. A division would take five instructions.
    """
    return _approximate("rcp", x) if _compiling.get() else 1.0 / x


def sigmoid(x: Block) -> Block:
    """Computes 1 / (1 + exp(-x)) in float32 from `exp2` and `reciprocal`."""
    return reciprocal(1.0 + exp2(x * -LOG2_E))


def _approximate(function: str, x: Block) -> Block:
    [result] = plgpu.elementwise_inline_asm(
        f"{function}.approx.ftz.f32 $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return result


def widen(x: Block) -> Block:
    """Converts bfloat16 to float32, two neighbours at a time; returns float32 as it is.

    This takes one instruction for each number, the compiler's own conversion one and a half.
    """
    if not _compiling.get() or x.dtype != jnp.bfloat16:
        return x.astype(jnp.float32)
    [result] = plgpu.elementwise_inline_asm(
        "{ .reg .b32 low, high; shl.b32 low, $2, 16; and.b32 high, $2, 0xffff0000;"
        " mov.b32 $0, low; mov.b32 $1, high; }",
        args=[x],
        constraints="=f,=f,r",
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return result
