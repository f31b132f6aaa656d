"""Normalisations, joined with the sum of a residual branch or with an activation."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import norm_act, residual_norm
from vig_jax.layers.linear import Dtype
from vig_jax.sharding.kernels import over_batch


class Residual(NamedTuple):
    """A residual stream whose last branch is still to be added.

    The norm that reads the stream adds it: one pass over memory instead of two.

    Attributes:
        x: the stream [B, h, w, D].
        branch: what to add, or None.
        keep: factor on the branch of each sample [B], or None for 1; see `DropPath`.
    """

    x: Float[Array, "B h w D"]
    branch: Float[Array, "B h w D"] | None = None
    keep: Float[Array, " B"] | None = None

    def total(self) -> Float[Array, "B h w D"]:
        """The stream with the branch added."""
        if self.branch is None:
            return self.x
        if self.keep is None:
            return self.x + self.branch
        keep = self.keep[:, None, None, None]
        kept = jnp.where(keep == 0, 0, keep * self.branch)
        return (self.x + kept).astype(self.x.dtype)


class Norm(nn.Module):
    """Normalisation over channels; statistics are float32 or wider, results have the input's type.

    Attributes:
        kind: "rms", `x / sqrt(mean(x^2) + eps) * scale`, or "layer", with the mean taken off first
            and a bias.
        epsilon: eps; upstream has 1e-6 in RMS norms and 1e-5 in layer norms.
        activation: None, "silu" or "gelu" (the exact one), after the norm.
    """

    kind: str
    epsilon: float
    activation: str | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, stream: Residual) -> tuple[Float[Array, "B h w D"], Float[Array, "B h w D"]]:
        """The stream with its branch added, and that normalised."""
        x, branch, keep = stream
        shape = (x.shape[-1],)
        parameters = [self.param("scale", nn.initializers.ones, shape, self.param_dtype)]
        if self.kind == "layer":
            parameters.append(self.param("bias", nn.initializers.zeros, shape, self.param_dtype))
        options: dict[str, Any] = {"kind": self.kind, "epsilon": self.epsilon}
        if branch is None:

            def norm(x: jax.Array, *parameters: jax.Array) -> jax.Array:
                return norm_act(x, *parameters, activation=self.activation, **options)

            return x, over_batch(norm, replicated=len(parameters))(x, *parameters)

        def add_norm(x: jax.Array, branch: jax.Array, *rest: jax.Array) -> Any:
            if keep is None:
                return residual_norm(x, branch, *rest, **options)
            return residual_norm(x, branch, *rest[1:], keep=rest[0], **options)

        kept = () if keep is None else (keep,)
        run = over_batch(add_norm, replicated=len(parameters))
        return run(x, branch, *kept, *parameters)


def rms_norm(param_dtype: Dtype) -> Norm:
    """RMS norm with upstream's epsilon."""
    return Norm("rms", 1e-6, param_dtype=param_dtype)


def layer_norm(param_dtype: Dtype, activation: str | None = None) -> Norm:
    """Layer norm with upstream's epsilon."""
    return Norm("layer", 1e-5, activation, param_dtype)
