"""Normalisations, fused with the sum of a residual branch or with an activation."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas import norm_act, residual_norm
from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import Dtype
from vig_jax.sharding.kernels import MAPS, ROWS, WHOLE, shard_kernel


class Residual(flax.struct.PyTreeNode):
    """A residual stream whose last branch is not added yet.

    The norm that reads the stream next adds the branch: one pass over memory instead of two.

    Attributes:
        x: the stream [B, h, w, D].
        branch: the branch to add [B, h, w, D], or None.
        branch_scale: the factor on the branch of each image [B], or of each token [B, h] of packed
            images; None for 1. See `DropPath`.
    """

    x: Float[Array, "B h w D"]
    branch: Float[Array, "B h w D"] | None = None
    branch_scale: Float[Array, "B *h"] | None = None

    def total(self) -> Float[Array, "B h w D"]:
        """Returns the stream with the branch added."""
        if self.branch is None:
            return self.x
        if self.branch_scale is None:
            return self.x + self.branch
        scale = jnp.expand_dims(self.branch_scale, range(self.branch_scale.ndim, 4))
        wide = float32_or_wider(self.x.dtype)
        scaled = jnp.where(scale == 0, 0, scale.astype(wide) * self.branch.astype(wide))
        return (self.x.astype(wide) + scaled).astype(self.x.dtype)


class Norm(nn.Module):
    """Normalisation over channels; statistics are float32 or wider, results have the input's dtype.

    Attributes:
        kind: "rms", `x / sqrt(mean(x^2) + eps) * scale`, or "layer", which first subtracts the mean
            and has a bias.
        epsilon: eps; upstream uses 1e-6 in RMS norms and 1e-5 in layer norms.
        activation: None, "silu" or "gelu" (the exact one), applied after the norm; not by `add`.
        param_dtype: dtype of scale and bias.
    """

    kind: str
    epsilon: float
    activation: str | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def _weights(self, width: int) -> tuple[jax.Array | np.ndarray, ...]:
        """Returns the scale [D], and for a layer norm the bias [D]."""
        scale = self.param("scale", nn.initializers.ones, (width,), self.param_dtype)
        if self.kind != "layer":
            return (scale,)
        return scale, self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """Normalises `x` and applies the activation."""
        weights = self._weights(x.shape[-1])

        def norm(x: jax.Array, *weights: jax.Array) -> jax.Array:
            options: dict[str, Any] = {"kind": self.kind, "epsilon": self.epsilon}
            return norm_act(x, *weights, activation=self.activation, **options)

        specs = (MAPS, *[WHOLE] * len(weights))
        return shard_kernel(norm, specs, MAPS)(x, *weights)

    def add(self, stream: Residual) -> tuple[Float[Array, "B h w D"], Float[Array, "B h w D"]]:
        """Adds the pending branch of a stream and normalises the sum.

        Args:
            stream: with or without a pending branch.

        Returns:
            The sum, and the sum normalised.
        """
        if stream.branch is None:
            return stream.x, self(stream.x)
        weights = self._weights(stream.x.shape[-1])
        scales = () if stream.branch_scale is None else (stream.branch_scale,)

        def add_norm(x: jax.Array, branch: jax.Array, *rest: jax.Array) -> Any:
            keep, weights = rest[: len(scales)], rest[len(scales) :]
            options: dict[str, Any] = {"kind": self.kind, "epsilon": self.epsilon}
            if not keep or keep[0].ndim == 1:
                return residual_norm(x, branch, *weights, keep=keep[0] if keep else None, **options)
            rows = (array.reshape(-1, *x.shape[2:]) for array in (x, branch))
            results = residual_norm(*rows, *weights, keep=keep[0].reshape(-1), **options)
            return tuple(result.reshape(x.shape) for result in results)

        specs = (MAPS, MAPS, *[ROWS] * len(scales), *[WHOLE] * len(weights))
        run = shard_kernel(add_norm, specs, MAPS)
        return run(stream.x, stream.branch, *scales, *weights)


def rms_norm(param_dtype: Dtype) -> Norm:
    """Returns an RMS norm with upstream's epsilon."""
    return Norm("rms", 1e-6, param_dtype=param_dtype)


def layer_norm(param_dtype: Dtype, activation: str | None = None) -> Norm:
    """Returns a layer norm with upstream's epsilon."""
    return Norm("layer", 1e-5, activation, param_dtype)
