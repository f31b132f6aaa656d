"""Launches kernels: the launch primitive, its lowering and batching rules, and the interpreter.

Nothing here depends on a backend of Pallas: see `core.triton` and `core.mosaic`.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .device import Device, local_gpu

LAUNCH = "kernels_pallas_launch"
"""Name of the primitive that launches a kernel; its parameter `name` is the kernel's name."""

MAX_PROGRAMS = 2**31 - 1
"""Most programs of a launch on a GPU."""

# Part of the keys of JAX's caches, so that `interpret` need not clear them.
_interpreting = jax.make_user_context(default_value=False)


def interpret() -> contextlib.AbstractContextManager[None]:
    """Traces kernels for Pallas's interpreter, so that they run on any platform.

    Name the implementation: None, and a sequence that has a portable implementation in it, choose
    by platform and so take the portable one outside of CUDA. Functions that were compiled outside
    of the context are compiled again inside of it.
    """
    return _interpreting(True)


def is_interpreting() -> bool:
    """Returns True inside of `interpret`."""
    return _interpreting.value


def target_device() -> Device | None:
    """Returns the GPU that kernels are traced for; None if there is no GPU, or inside `interpret`.

    A kernel that is traced for None may be compiled for any GPU that its backend supports.
    """
    return None if is_interpreting() else local_gpu()


def kernel_call(
    kernel: Callable[..., None],
    *,
    name: str,
    grid: tuple[int, ...],
    out_shape: Sequence[jax.ShapeDtypeStruct],
    compiler_params: Any,
    aliases: Mapping[int, int] | None = None,
) -> Callable[..., Any]:
    """Makes a function of the input arrays that launches a kernel and returns its outputs.

    Args:
        kernel: The kernel. It takes references to whole arrays, inputs first, then outputs, and
            does its own indexing.
        name: The kernel's name in profiles and in the jaxpr.
        grid: Programs along each axis.
        out_shape: Shapes and types of the outputs.
        compiler_params: Parameters of the backend of Pallas that compiles the kernel.
        aliases: Maps the position of an input to that of the output which starts with its contents.

    Raises:
        NotImplementedError: There are more than MAX_PROGRAMS programs.
    """
    programs = functools.reduce(lambda a, b: a * b, grid)
    if programs > MAX_PROGRAMS:
        raise NotImplementedError(f"{programs} programs are more than the {MAX_PROGRAMS} of a GPU")
    call = pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=tuple(out_shape),
        compiler_params=compiler_params,
        input_output_aliases=dict(aliases or {}),
        interpret=is_interpreting(),
        name=name,
    )
    return launchable(call, name=name, shapes=out_shape)


def launchable(
    call: Callable[..., Any], *, name: str, shapes: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Any]:
    """Makes a kernel of Pallas the launch primitive, except inside `interpret`.

    Args:
        call: A function of arrays that runs the kernel.
        name: The kernel's name.
        shapes: Shapes and types of its outputs.
    """
    if is_interpreting():
        return call
    return functools.partial(_launch_p.bind, call=call, name=name, shapes=tuple(shapes))


# JAX lowers every branch of `platform_dependent` for every platform. So a program that is lowered
# for CUDA and other platforms needs a lowering of the kernels there, which is never executed.
_launch_p = Primitive(LAUNCH)
_launch_p.multiple_results = True


@_launch_p.def_impl
def _launch_now(*arrays: jax.Array, call: Callable[..., Any], **_: Any) -> Any:
    return jax.jit(call)(*arrays)


@_launch_p.def_abstract_eval
def _launch_shapes(*avals: Any, shapes: Sequence[jax.ShapeDtypeStruct], **_: Any) -> list[Any]:
    # The kernel is traced once, when it is lowered.
    del avals
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in shapes]


def _launch_batched(
    arrays: Any, axes: Any, *, call: Callable[..., Any], name: str, shapes: Any
) -> tuple[Any, Any]:
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    shapes = tuple(jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in shapes)
    batched = jax.vmap(call, in_axes=tuple(axes))
    out = _launch_p.bind(*arrays, call=batched, name=name, shapes=shapes)
    return out, [0] * len(out)


def _no_derivative(arrays: Any, tangents: Any, **_: Any) -> Any:
    raise NotImplementedError(
        "kernels are differentiable once, in reverse mode; for higher derivatives pass a portable "
        "implementation: 'xla_chunked', or 'xla' for operators that have no 'xla_chunked'"
    )


def _no_launch(
    context: mlir.LoweringRuleContext, *nodes: Any, name: str, shapes: Any, **_: Any
) -> Any:
    if "cuda" not in context.module_context.platforms:
        raise NotImplementedError(
            f"the CUDA kernel {name} cannot be lowered for "
            f"{', '.join(context.module_context.platforms)}; outside of CUDA GPUs pass another "
            "implementation, or None for the best one there"
        )

    def never(*arrays):
        del arrays
        return [jnp.full(x.shape, jnp.nan, x.dtype) for x in shapes]

    return mlir.lower_fun(never)(context, *nodes)


def _cuda_launch(
    context: mlir.LoweringRuleContext, *nodes: Any, call: Callable[..., Any], **_: Any
) -> Any:
    # Mosaic kernels cannot be lowered for several platforms at once, and this branch is CUDA's.
    module_context = context.module_context.replace(platforms=("cuda",))
    context = context.replace(module_context=module_context)
    with _some_gpu():
        return mlir.lower_fun(lambda *arrays: call(*arrays))(context, *nodes)


def _some_gpu() -> contextlib.AbstractContextManager[Any]:
    """Sets a GPU to lower for where there is none, which JAX 0.12 requires.

    Earlier releases ignore it. It is the GPU of the lowest compute capability that is supported.
    """
    if local_gpu() is not None:
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


batching.primitive_batchers[_launch_p] = _launch_batched
ad.primitive_jvps[_launch_p] = _no_derivative
mlir.register_lowering(_launch_p, _no_launch)
mlir.register_lowering(_launch_p, _cuda_launch, platform="cuda")
