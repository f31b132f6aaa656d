"""The kernels: forward, and backward.

Maps are [rows N, width D]. A program takes R whole rows at a time, as parts of C channels: lists of
arrays [R, C], zero where the map has ended. README.md derives the gradient.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.norm.pallas_triton.activation import activate, activation_slope
from kernels_pallas.norm.pallas_triton.config import Tiling
from kernels_pallas.norm.spec import NormSpec


class _Rows:
    """The rows that a program takes in one step."""

    def __init__(
        self, spec: NormSpec, tiling: Tiling, program: Any, step: Any, interpreting: bool
    ) -> None:
        self.spec, self.tiling, self.interpreting = spec, tiling, interpreting
        programs = tiling.programs(spec)
        block = step * programs + program  # neighbours work side by side
        self.rows = block * tiling.rows + _iota((tiling.rows, 1), 0)  # [R, 1]
        ragged = tiling.steps(spec) * programs * tiling.rows != spec.rows
        self.mask = self.rows < spec.rows if ragged else None  # [R, 1]

    def read(self, ref: Any) -> list[Any]:
        """The rows of a map, float32."""
        return [
            pallas_compat.load(
                ref, (self.rows, columns), self._within(mask), interpreting=self.interpreting
            ).astype(jnp.float32)
            for columns, mask in _parts(self.spec, self.tiling)
        ]

    def write(self, ref: Any, parts: Sequence[Any]) -> None:
        """Rounds the parts to a map's rows."""
        for (columns, mask), part in zip(_parts(self.spec, self.tiling), parts, strict=True):
            index = (jnp.broadcast_to(self.rows, part.shape), columns)
            pallas_compat.store(
                ref, index, part, self._within(mask), interpreting=self.interpreting
            )

    def keep(self, ref: Any) -> Any:
        """The factor on each row's branch [R, 1]."""
        image = jax.lax.div(self.rows, jnp.int32(self.spec.rows // self.spec.images))
        return pallas_compat.load(ref, (image,), self.mask, interpreting=self.interpreting)

    def widened(self, vector: Sequence[Any]) -> list[Any]:
        """Parts [1, C] for every row."""
        return [jnp.broadcast_to(part, self._shape) for part in vector]

    def _within(self, mask: Any) -> Any:
        mask = pallas_compat.both(self.mask, mask)
        return None if mask is None else jnp.broadcast_to(mask, self._shape)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.tiling.rows, self.tiling.columns

    def standardized(self, x: Sequence[Any]) -> tuple[list[Any], Any]:
        """Removes the mean (kind "layer"); also the factor for a variance of one [R, 1]."""
        if self.spec.kind == "layer":
            mean = self.mean(x)
            x = [
                part - mean if mask is None else jnp.where(mask, part - mean, 0.0)
                for part, (_, mask) in zip(x, _parts(self.spec, self.tiling), strict=True)
            ]
        variance = self.mean([part * part for part in x])
        return list(x), jax.lax.rsqrt(variance + self.spec.epsilon)

    def mean(self, parts: Sequence[Any]) -> Any:
        """Over the channels [R, 1]."""
        total = functools.reduce(jnp.add, parts)
        return jnp.sum(total, axis=1)[:, None] * (1 / self.spec.width)


def _iota(shape: tuple[int, int], axis: int) -> Any:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _parts(spec: NormSpec, tiling: Tiling) -> list[tuple[Any, Any]]:
    """Channel numbers [1, C] of each part, and which of them exist: None if all do."""
    parts = []
    for number in range(tiling.parts(spec)):
        columns = number * tiling.columns + _iota((1, tiling.columns), 1)
        ragged = (number + 1) * tiling.columns > spec.width
        parts.append((columns, columns < spec.width if ragged else None))
    return parts


def _read_vector(spec: NormSpec, tiling: Tiling, ref: Any, interpreting: bool) -> list[Any]:
    """Parts [1, C] of the scale or the bias."""
    return [
        pallas_compat.load(ref, (columns,), mask, interpreting=interpreting)
        for columns, mask in _parts(spec, tiling)
    ]


def _forward_kernel(
    *refs: Any, names: Sequence[str], spec: NormSpec, tiling: Tiling, interpreting: bool
) -> None:
    """Refs by `names`: x, branch, keep, scale, bias; total, y."""
    ref = dict(zip(names, refs, strict=True))
    program = pallas_compat.program_id(0)
    scale = _read_vector(spec, tiling, ref["scale"], interpreting)
    bias = _read_vector(spec, tiling, ref["bias"], interpreting) if "bias" in ref else []

    def step(n, carry):
        rows = _Rows(spec, tiling, program, n, interpreting)
        x = rows.read(ref["x"])
        branch = rows.read(ref["branch"]) if "branch" in ref else None
        keep = rows.keep(ref["keep"]) if "keep" in ref else None
        # Here, while the maps are on their way, the compiler changes the vectors' layout.
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
        y = [activate(spec.activation, part, spec.dtype, interpreting=interpreting) for part in y]
        rows.write(ref["y"], y)
        return carry

    jax.lax.fori_loop(0, tiling.steps(spec), step, 0)


def forward(
    spec: NormSpec, tiling: Tiling, x: Any, branch: Any, keep: Any, scale: Any, bias: Any
) -> tuple[Any, Any]:
    """Runs the forward kernel.

    Args:
        spec: The call.
        tiling: Of the kernel.
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
    results = _call(_forward_kernel, "norm_forward", spec, tiling, inputs, outs)
    return results.get("total"), results["y"]


def _backward_kernel(
    *refs: Any, names: Sequence[str], spec: NormSpec, tiling: Tiling, interpreting: bool
) -> None:
    """Gradients.

    Refs by `names`: x, grad_y, grad_total, keep, scale, bias; grad_x, grad_branch, and each
    program's sums [programs, D] grad_scale and grad_bias.
    """
    ref = dict(zip(names, refs, strict=True))
    program = pallas_compat.program_id(0)
    scale = _read_vector(spec, tiling, ref["scale"], interpreting)
    if spec.activation:
        bias = [0.0] * len(scale)
        if "bias" in ref:
            bias = _read_vector(spec, tiling, ref["bias"], interpreting)

    def step(n, carry):
        rows = _Rows(spec, tiling, program, n, interpreting)
        x, grad = rows.read(ref["x"]), rows.read(ref["grad_y"])
        # Early, as these take long too.
        grad_total = rows.read(ref["grad_total"]) if "grad_total" in ref else None
        keep = rows.keep(ref["keep"]) if "keep" in ref else None
        x, factor = rows.standardized(x)
        x = [part * factor for part in x]  # from here on of variance one
        if spec.activation:
            y = [part * s + b for part, s, b in zip(x, scale, bias, strict=True)]
            slope = functools.partial(
                activation_slope, spec.activation, dtype=spec.dtype, interpreting=interpreting
            )
            grad = [g * slope(part) for g, part in zip(grad, y, strict=True)]
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

    zero = jnp.zeros((tiling.rows, tiling.columns), jnp.float32)
    outs = [name for name in ("grad_scale", "grad_bias") if name in ref]
    sums = jax.lax.fori_loop(0, tiling.steps(spec), step, [[zero] * len(scale) for _ in outs])
    for name, parts in zip(outs, sums, strict=True):
        for (columns, mask), part in zip(_parts(spec, tiling), parts, strict=True):
            pallas_compat.store(
                ref[name],
                (jnp.broadcast_to(program, columns.shape), columns),
                jnp.sum(part, axis=0)[None, :],
                mask,
                interpreting=interpreting,
            )


def backward(
    spec: NormSpec,
    tiling: Tiling,
    x: Any,
    keep: Any,
    scale: Any,
    bias: Any,
    grad_total: Any,
    grad_y: Any,
) -> tuple[Any, Any, Any, Any]:
    """Runs the backward kernel.

    Args:
        spec: The call.
        tiling: Of the kernel.
        x: What was normalised [N, D].
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
    sums = jax.ShapeDtypeStruct((tiling.programs(spec), spec.width), jnp.float32)
    outs = {"grad_x": like_x}
    if keep is not None:
        outs["grad_branch"] = like_x
    outs["grad_scale"] = sums
    if bias is not None:
        outs["grad_bias"] = sums
    results = _call(_backward_kernel, "norm_backward", spec, tiling, inputs, outs)
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
    tiling: Tiling,
    inputs: dict[str, Any],
    outs: dict[str, Any],
) -> dict[str, Any]:
    """Launches a kernel that knows its arrays by name; inputs that are None are left out."""
    inputs = {key: array for key, array in inputs.items() if array is not None}
    results = pallas_compat.triton_call(
        functools.partial(kernel, names=(*inputs, *outs), spec=spec, tiling=tiling),
        name=name,
        programs=tiling.programs(spec),
        out_shape=list(outs.values()),
        num_warps=tiling.num_warps,
        num_stages=1,
    )(*inputs.values())
    return dict(zip(outs, results, strict=True))
