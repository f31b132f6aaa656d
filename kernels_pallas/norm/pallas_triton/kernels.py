"""The kernels: forward, and backward.

Maps are [rows N, width D]. A program works on blocks of R whole rows. A block of Triton has a power
of two columns, and most widths are none, so a row is a list of parts of C channels each: arrays
[R, C], zero where the map has ended. Therefore each line of mathematics is a loop over parts.
README.md derives the gradient.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...core import triton
from ...core.types import Block, Mask, Ref
from ..spec import NormSpec
from .activation import activate, activation_slope
from .config import KernelConfig


class _Rows:
    """The block of rows that a program works on in one step."""

    def __init__(self, spec: NormSpec, config: KernelConfig, program: Any, step: Any) -> None:
        self.spec, self.config = spec, config
        programs = config.programs(spec)
        block = step * programs + program  # neighbours work side by side
        self.rows = block * config.rows + _iota((config.rows, 1), 0)  # [R, 1]
        ragged = config.steps(spec) * programs * config.rows != spec.rows
        self.mask = self.rows < spec.rows if ragged else None  # [R, 1]

    def read(self, ref: Ref) -> list[Block]:
        """Loads the rows of a map, float32."""
        return [
            triton.load(ref, (self.rows, columns), self._within(mask)).astype(jnp.float32)
            for columns, mask in _parts(self.spec, self.config)
        ]

    def write(self, ref: Ref, parts: Sequence[Block]) -> None:
        """Rounds the parts and stores them to the rows of a map."""
        for (columns, mask), part in zip(_parts(self.spec, self.config), parts, strict=True):
            index = (jnp.broadcast_to(self.rows, part.shape), columns)
            triton.store(ref, index, part, self._within(mask))

    def keep(self, ref: Ref) -> Block:
        """Loads the factor on each row's branch [R, 1]."""
        image = jax.lax.div(self.rows, jnp.int32(self.spec.rows // self.spec.images))
        return triton.load(ref, (image,), self.mask)

    def widened(self, vector: Sequence[Block]) -> list[Block]:
        """Broadcasts parts [1, C] to every row."""
        return [jnp.broadcast_to(part, self._shape) for part in vector]

    def _within(self, mask: Mask) -> Mask:
        mask = triton.both(self.mask, mask)
        return None if mask is None else jnp.broadcast_to(mask, self._shape)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.config.rows, self.config.columns

    def standardized(self, x: Sequence[Block]) -> tuple[list[Block], Block]:
        """Removes the mean (kind "layer"); also returns the factor for a variance of 1 [R, 1]."""
        if self.spec.kind == "layer":
            mean = self.mean(x)
            x = [
                part - mean if mask is None else jnp.where(mask, part - mean, 0.0)
                for part, (_, mask) in zip(x, _parts(self.spec, self.config), strict=True)
            ]
        variance = self.mean([part * part for part in x])
        return list(x), jax.lax.rsqrt(variance + self.spec.epsilon)

    def mean(self, parts: Sequence[Block]) -> Block:
        """Computes the mean over the channels [R, 1]."""
        total = functools.reduce(jnp.add, parts)
        return jnp.sum(total, axis=1)[:, None] * (1 / self.spec.width)


def _iota(shape: tuple[int, int], axis: int) -> Block:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _parts(spec: NormSpec, config: KernelConfig) -> list[tuple[Block, Mask]]:
    """Returns the channel numbers [1, C] of each part, and the mask of those that exist."""
    parts = []
    for number in range(config.parts(spec)):
        columns = number * config.columns + _iota((1, config.columns), 1)
        ragged = (number + 1) * config.columns > spec.width
        parts.append((columns, columns < spec.width if ragged else None))
    return parts


def _read_vector(spec: NormSpec, config: KernelConfig, ref: Ref) -> list[Block]:
    """Loads the parts [1, C] of the scale or the bias."""
    return [triton.load(ref, (columns,), mask) for columns, mask in _parts(spec, config)]


def _forward_kernel(*refs: Ref, names: Sequence[str], spec: NormSpec, config: KernelConfig) -> None:
    """Computes the sum and its normalisation.

    Refs by `names`: x, branch, keep, scale, bias; total, y.
    """
    ref = dict(zip(names, refs, strict=True))
    program = triton.program_id(0)
    scale = _read_vector(spec, config, ref["scale"])
    bias = _read_vector(spec, config, ref["bias"]) if "bias" in ref else []

    def step(n, carry):
        rows = _Rows(spec, config, program, n)
        x = rows.read(ref["x"])
        branch = rows.read(ref["branch"]) if "branch" in ref else None
        keep = rows.keep(ref["keep"]) if "keep" in ref else None
        # The compiler changes the vectors' layout here, while the maps are being loaded.
        wide_scale, wide_bias = rows.widened(scale), rows.widened(bias)
        if branch is not None:
            if keep is not None:
                branch = [jnp.where(keep == 0.0, 0.0, part * keep) for part in branch]
            total = [(a + b).astype(spec.dtype) for a, b in zip(x, branch, strict=True)]
            rows.write(ref["total"], total)
            x = [part.astype(jnp.float32) for part in total]
        x, factor = rows.standardized(x)
        y = [part * factor * s for part, s in zip(x, wide_scale, strict=True)]
        if wide_bias:
            y = [part + b for part, b in zip(y, wide_bias, strict=True)]
        y = [activate(spec.activation, part, spec.dtype) for part in y]
        rows.write(ref["y"], y)
        return carry

    jax.lax.fori_loop(0, config.steps(spec), step, 0)


def forward(
    spec: NormSpec,
    config: KernelConfig,
    x: Array,
    branch: Array | None,
    keep: Array | None,
    scale: Array,
    bias: Array | None,
) -> tuple[Array | None, Array]:
    """Runs the forward kernel.

    Args:
        spec: The call.
        config: Of the kernel.
        x: [N, D].
        branch: [N, D], or None.
        keep: float32 [images], or None.
        scale: float32 [D].
        bias: float32 [D], or None.

    Returns:
        The sum of x and branch [N, D], None without a branch, and the result [N, D].
    """
    inputs = {"x": x, "branch": branch, "keep": keep, "scale": scale, "bias": bias}
    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    outs = {"total": like_x, "y": like_x} if spec.residual else {"y": like_x}
    results = _call(_forward_kernel, "norm_forward", spec, config, inputs, outs)
    return results.get("total"), results["y"]


def _backward_kernel(
    *refs: Ref, names: Sequence[str], spec: NormSpec, config: KernelConfig
) -> None:
    """Computes the gradients.

    Refs by `names`: x, grad_y, grad_total, keep, scale, bias; grad_x, grad_branch, and each
    program's sums [programs, D] grad_scale and grad_bias.
    """
    ref = dict(zip(names, refs, strict=True))
    program = triton.program_id(0)
    scale = _read_vector(spec, config, ref["scale"])
    if spec.activation:
        bias: list[Any] = [0.0] * len(scale)
        if "bias" in ref:
            bias = _read_vector(spec, config, ref["bias"])

    def step(n, carry):
        rows = _Rows(spec, config, program, n)
        x, grad = rows.read(ref["x"]), rows.read(ref["grad_y"])
        # Early, because these loads take long too.
        grad_total = rows.read(ref["grad_total"]) if "grad_total" in ref else None
        keep = rows.keep(ref["keep"]) if "keep" in ref else None
        x, factor = rows.standardized(x)
        x = [part * factor for part in x]  # from here on its variance is 1
        if spec.activation:
            y = [part * s + b for part, s, b in zip(x, scale, bias, strict=True)]
            grad = [
                g * activation_slope(spec.activation, part, spec.dtype)
                for g, part in zip(grad, y, strict=True)
            ]
        sums = [[g * part for g, part in zip(grad, x, strict=True)]]
        if "grad_bias" in ref:
            sums.append(grad)
        grad = [g * s for g, s in zip(grad, scale, strict=True)]
        along = rows.mean([g * part for g, part in zip(grad, x, strict=True)])
        grad_x = [g - part * along for g, part in zip(grad, x, strict=True)]
        if spec.kind == "layer":
            mean = rows.mean(grad)
            grad_x = [part - mean for part in grad_x]
        grad_x = [part * factor for part in grad_x]
        if grad_total is not None:
            grad_x = [a + b for a, b in zip(grad_x, grad_total, strict=True)]
        rows.write(ref["grad_x"], grad_x)
        if keep is not None:
            rows.write(ref["grad_branch"], [part * keep for part in grad_x])
        return jax.tree.map(jnp.add, carry, sums)

    zero = jnp.zeros((config.rows, config.columns), jnp.float32)
    outs = [name for name in ("grad_scale", "grad_bias") if name in ref]
    sums = jax.lax.fori_loop(0, config.steps(spec), step, [[zero] * len(scale) for _ in outs])
    for name, parts in zip(outs, sums, strict=True):
        for (columns, mask), part in zip(_parts(spec, config), parts, strict=True):
            index = (jnp.broadcast_to(program, columns.shape), columns)
            triton.store(ref[name], index, jnp.sum(part, axis=0)[None, :], mask)


def backward(
    spec: NormSpec,
    config: KernelConfig,
    x: Array,
    keep: Array | None,
    scale: Array,
    bias: Array | None,
    grad_total: Array | None,
    grad_y: Array,
) -> tuple[Array, Array, Array, Array | None]:
    """Runs the backward kernel.

    Args:
        spec: The call.
        config: Of the kernel.
        x: The array that was normalised [N, D].
        keep: float32 [images], or None.
        scale: float32 [D].
        bias: float32 [D], or None.
        grad_total: Gradient of the sum x [N, D], None without a branch.
        grad_y: Gradient of the result [N, D].

    Returns:
        Gradients of the call's x and branch (the same array without `keep`) [N, D], of the scale
        and, unless it is None, of the bias [D].
    """
    inputs = {"x": x, "grad_y": grad_y, "grad_total": grad_total, "keep": keep, "scale": scale}
    inputs["bias"] = bias if spec.activation else None
    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    sums = jax.ShapeDtypeStruct((config.programs(spec), spec.width), jnp.float32)
    outs = {"grad_x": like_x}
    if keep is not None:
        outs["grad_branch"] = like_x
    outs["grad_scale"] = sums
    if bias is not None:
        outs["grad_bias"] = sums
    results = _call(_backward_kernel, "norm_backward", spec, config, inputs, outs)
    return (
        results["grad_x"],
        results.get("grad_branch", results["grad_x"]),
        jnp.sum(results["grad_scale"], axis=0),
        None if bias is None else jnp.sum(results["grad_bias"], axis=0),
    )


def _call(
    kernel: Callable[..., None],
    name: str,
    spec: NormSpec,
    config: KernelConfig,
    inputs: Mapping[str, Array | None],
    outs: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Array]:
    """Launches a kernel that gets its references by name; inputs that are None are left out."""
    inputs = {key: array for key, array in inputs.items() if array is not None}
    results = triton.triton_call(
        functools.partial(kernel, names=(*inputs, *outs), spec=spec, config=config),
        name=name,
        programs=config.programs(spec),
        out_shape=list(outs.values()),
        num_warps=config.num_warps,
        num_stages=1,
    )(*inputs.values())
    return dict(zip(outs, results, strict=True))
