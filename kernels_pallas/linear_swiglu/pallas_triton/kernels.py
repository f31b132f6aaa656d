"""The kernel: the product and the gate, without writing the product to memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.integers import cdiv
from ...core.triton import both
from ...core.types import Block, Mask, Ref
from ..spec import LinearSwigluSpec
from .config import Config


def _kernel(
    x_ref: Ref, kernel_ref: Ref, out_ref: Ref, *, spec: LinearSwigluSpec, config: Config
) -> None:
    """Computes a tile of the output.

    Refs: x [N, D], kernel [D, 2I]; output [N, I].

    Programs that share rows of x are neighbours. The gate and up columns of an output are side by
    side in one product, so a thread has both.
    """
    steps = cdiv(spec.features, config.depth)
    program = triton.program_id(0)
    block, tile = triton.divide(program, cdiv(spec.width, config.columns))
    rows = block * config.rows + jnp.arange(config.rows)[:, None]
    inside = None if spec.rows % config.rows == 0 else rows < spec.rows
    half = jnp.arange(2 * config.columns)[None, :]
    half, column = triton.divide(half, config.columns)

    def add_product(step: Any, total: Block) -> Block:
        features = step * config.depth + jnp.arange(config.depth)
        columns = tile * config.columns + column
        x_mask, kernel_mask = inside, None
        if spec.features % config.depth:
            x_mask = both(inside, features[None, :] < spec.features)
            kernel_mask = features[:, None] < spec.features
        if spec.width % config.columns:
            kernel_mask = both(kernel_mask, columns < spec.width)
        x_mask = _broadcast(x_mask, (config.rows, config.depth))
        x = triton.load(x_ref, (rows, features[None, :]), x_mask)
        kernel = triton.load(
            kernel_ref,
            (features[:, None], half * spec.width + columns),
            _broadcast(kernel_mask, (config.depth, 2 * config.columns)),
        )
        return total + jnp.dot(x, kernel, preferred_element_type=jnp.float32)

    zeros = jnp.zeros((config.rows, 2 * config.columns), jnp.float32)
    gate, up = jnp.split(jax.lax.fori_loop(0, steps, add_product, zeros), 2, axis=1)
    out = gate * triton.sigmoid(gate) * up
    columns = tile * config.columns + jnp.arange(config.columns)[None, :]
    mask = inside
    if spec.width % config.columns:
        mask = both(inside, columns < spec.width)
    mask = _broadcast(mask, (config.rows, config.columns))
    triton.store(out_ref, (rows, columns), out, mask)


def _broadcast(mask: Mask, shape: tuple[int, int]) -> Mask:
    return None if mask is None else jnp.broadcast_to(mask, shape)


def forward(
    spec: LinearSwigluSpec, config: Config, x: Float[Array, "N D"], kernel: Float[Array, "D X"]
) -> Float[Array, "N I"]:
    """Launches the kernel."""
    [out] = triton.triton_call(
        functools.partial(_kernel, spec=spec, config=config),
        name="linear_swiglu",
        programs=cdiv(spec.rows, config.rows) * cdiv(spec.width, config.columns),
        out_shape=[jax.ShapeDtypeStruct((spec.rows, spec.width), spec.dtype)],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )(x, kernel)
    return out
