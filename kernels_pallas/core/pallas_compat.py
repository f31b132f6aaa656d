"""The one file that knows the version-dependent names of Pallas and of its Triton backend."""

import contextlib
import contextvars
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels_pallas.core.device import least_cuda_capability

CAPABILITIES = (8.0, math.inf)
"""From, and below: the compute capabilities that Pallas's Triton backend compiles for."""

MAX_PROGRAMS = 2**31 - 1
"""Most programs of a launch on a GPU."""

MAX_ROWS = 2**31 - 2**16
"""Most rows that kernels number: in 32 bits, those past the end that a program skips too."""

# The backend ships with every JAX release served here. That it will not do so for ever is told at
# each launch since JAX 0.11; its users cannot act on that, this file can.
warnings.filterwarnings(
    "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
)

LOG2_E = math.log2(math.e)

LAUNCH = "kernels_pallas_launch"
"""Name of the primitive that launches a kernel; its parameter `name` is the kernel's name."""

_interpreting = contextvars.ContextVar("kernels_pallas_interpreting", default=False)


@contextlib.contextmanager
def interpret() -> Iterator[None]:
    """Within it, kernels are traced for Pallas's interpreter and so run on any platform.

    Name the implementation: None, and a sequence with a portable implementation in it, still choose
    by platform, and so take the portable one outside of CUDA. Functions compiled before are
    compiled again, inside and after it.
    """
    jax.clear_caches()
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)
        jax.clear_caches()


def is_interpreting() -> bool:
    """Whether `interpret` is in force."""
    return _interpreting.get()


def triton_call(
    kernel: Callable[..., None],
    *,
    name: str,
    programs: int,
    out_shape: Sequence[jax.ShapeDtypeStruct],
    num_warps: int,
    num_stages: int,
    aliases: Mapping[int, int] | None = None,
    capabilities: tuple[float, float] = CAPABILITIES,
) -> Callable[..., Any]:
    """A launch of `programs` programs on a one-dimensional grid.

    References are to whole arrays: inputs first, then outputs. Kernels do their own indexing.
    `aliases` maps inputs to the outputs that start with their contents.

    Raises:
        NotImplementedError: A local GPU's compute capability is not in the half-open range
            `capabilities`, or the programs are too many.
    """
    interpreting = is_interpreting()
    capability = None if interpreting else least_cuda_capability()
    least, beyond = capabilities
    if capability is not None and not least <= capability < beyond:
        raise NotImplementedError(
            f"compute capability {capability} of a GPU here is not in [{least}, {beyond})"
        )
    if programs > MAX_PROGRAMS:
        raise NotImplementedError(f"{programs} programs are more than the {MAX_PROGRAMS} of a GPU")
    call = pl.pallas_call(
        functools.partial(kernel, interpreting=interpreting),
        grid=(programs,),
        out_shape=tuple(out_shape),
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        input_output_aliases=dict(aliases or {}),
        interpret=interpreting,
        name=name,
    )
    return call if interpreting else functools.partial(_launch_p.bind, call=call, name=name)


# A launch that JAX can lower for CPU and TPU too, if CUDA is among the platforms lowered for: then
# these have a branch of their own in `dispatch`, but JAX lowers every branch for every platform.
_launch_p = Primitive(LAUNCH)
_launch_p.multiple_results = True


@_launch_p.def_impl
def _launch_now(*arrays: jax.Array, call: Callable[..., Any], name: str) -> Any:
    del name
    return jax.jit(call)(*arrays)


@_launch_p.def_abstract_eval
def _launch_shapes(*avals: Any, call: Callable[..., Any], name: str) -> list[Any]:
    del name
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in jax.eval_shape(call, *avals)]


def _launch_batched(
    arrays: Any, axes: Any, *, call: Callable[..., Any], name: str
) -> tuple[Any, Any]:
    out = _launch_p.bind(*arrays, call=jax.vmap(call, in_axes=tuple(axes)), name=name)
    return out, [0] * len(out)


def _no_derivative(arrays: Any, tangents: Any, **_: Any) -> Any:
    raise NotImplementedError(
        "pallas_triton is differentiable once, in reverse mode; for more derivatives pass an "
        "implementation that is XLA's alone: 'xla_chunked', or 'xla' where there is no such"
    )


def _no_launch(
    context: mlir.LoweringRuleContext, *nodes: Any, call: Callable[..., Any], name: str
) -> Any:
    del name
    if "cuda" not in context.module_context.platforms:
        raise NotImplementedError(
            f"a CUDA kernel cannot be lowered for {', '.join(context.module_context.platforms)}; "
            "outside of CUDA GPUs use another implementation, or None for the best there"
        )

    def never(*arrays):
        return [jnp.full(x.shape, jnp.nan, x.dtype) for x in jax.eval_shape(call, *arrays)]

    return mlir.lower_fun(never)(context, *nodes)


def _cuda_launch(
    context: mlir.LoweringRuleContext, *nodes: Any, call: Callable[..., Any], name: str
) -> Any:
    del name
    with _some_gpu():
        return mlir.lower_fun(lambda *arrays: call(*arrays))(context, *nodes)


def _some_gpu() -> contextlib.AbstractContextManager[Any]:
    """Where there is no GPU, one to lower for: the least that kernels are for.

    JAX 0.12 wants to know one; to releases before it makes no difference.
    """
    if least_cuda_capability() is not None:
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


ad.primitive_jvps[_launch_p] = _no_derivative
batching.primitive_batchers[_launch_p] = _launch_batched
mlir.register_lowering(_launch_p, _no_launch)
mlir.register_lowering(_launch_p, _cuda_launch, platform="cuda")


program_id = pl.program_id
when = pl.when


def load(ref: Any, index: tuple[Any, ...], mask: Any, *, interpreting: bool) -> Any:
    """Elements of `ref` at broadcast indices; zero where the mask is False.

    Interpreted, NaN outside of `ref` where the mask is True.
    """
    if interpreting:
        value = jnp.where(_outside(ref, index), jnp.nan, ref[...][index])
        value = value.astype(ref.dtype)
        return value if mask is None else jnp.where(mask, value, jnp.zeros((), value.dtype))
    if mask is None:
        return plgpu.load(ref.at[index])
    return plgpu.load(ref.at[index], mask=mask, other=jnp.zeros((), ref.dtype))


def store(ref: Any, index: tuple[Any, ...], value: Any, mask: Any, *, interpreting: bool) -> None:
    """Writes `value` to `ref` at broadcast indices where the mask is True.

    Interpreted, all of `ref` becomes NaN if any of them is outside of it.
    """
    value = value.astype(ref.dtype)
    if interpreting:
        outside = _outside(ref, index)
        array = ref[...]
        if mask is not None:
            outside &= mask
            # An index out of range is dropped; a masked one is sent there.
            first = jnp.where(mask, jnp.asarray(index[0]), array.shape[0])
            index = (first, *index[1:])
        array = array.at[index].set(value, mode="drop")
        ref[...] = jnp.where(jnp.any(outside), jnp.nan, array).astype(ref.dtype)
    else:
        plgpu.store(ref.at[index], value, mask=mask)


def _outside(ref: Any, index: tuple[Any, ...]) -> Any:
    """Whether broadcast indices are outside of `ref`."""
    wrong = [(i < 0) | (i >= size) for i, size in zip(index, ref.shape, strict=True)]
    return functools.reduce(jnp.logical_or, wrong)


def both(mask: Any, other: Any) -> Any:
    """Where two masks are True; None is one that is True everywhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other


def power_of_two(least: int) -> int:
    """The least one not below `least`: axes in kernels have such lengths."""
    return 1 << (least - 1).bit_length()


def divide(x: Any, by: int) -> tuple[Any, Any]:
    """Quotient and rest of integers, none of them negative, in their type.

    Python's operators take several instructions more, for negative numbers.
    """
    divisor = np.array(by, x.dtype)
    return jax.lax.div(x, divisor), jax.lax.rem(x, divisor)


def barrier(*, interpreting: bool) -> None:
    """All threads of a program see what any of them stored before it."""
    if not interpreting:
        plgpu.debug_barrier()


def exp2(x: Any, *, interpreting: bool) -> Any:
    """2**x in float32 by the hardware's approximation, relative error 2**-22; tiny results are 0.

    Without the flush of denormal results the compiler spends four instructions on each.
    """
    return jnp.exp2(x) if interpreting else _approximate("ex2", x)


def log2(x: Any, *, interpreting: bool) -> Any:
    """Logarithm in float32 by the hardware's approximation, absolute error 2**-22 in [1, 2]."""
    return jnp.log2(x) if interpreting else _approximate("lg2", x)


def reciprocal(x: Any, *, interpreting: bool) -> Any:
    """1 / x in float32 by the hardware's approximation, relative error 2**-23; tiny results are 0.

    A division takes five instructions.
    """
    return 1.0 / x if interpreting else _approximate("rcp", x)


def sigmoid(x: Any, *, interpreting: bool) -> Any:
    """1 / (1 + exp(-x)) in float32 by these approximations."""
    power = exp2(x * -LOG2_E, interpreting=interpreting)
    return reciprocal(1.0 + power, interpreting=interpreting)


def _approximate(function: str, x: Any) -> Any:
    [result] = plgpu.elementwise_inline_asm(
        f"{function}.approx.ftz.f32 $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return result


def widen(x: Any, *, interpreting: bool) -> Any:
    """float32 of bfloat16 or float32, two neighbours at a time.

    One instruction for each number; the compiler's own conversion takes two for every other one.
    """
    if interpreting or x.dtype != jnp.bfloat16:
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
