"""What the model families share around their blocks."""

import contextlib
import difflib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.vig_mixer import IMPLEMENTATIONS
from vig_jax.errors import ConfigError


class FeatureInfo(NamedTuple):
    """One entry of `feature_info`, in timm's terms."""

    num_chs: int  # channels
    reduction: int  # stride against the image
    module: str


def check_images(images: jax.Array) -> None:
    """Refuses what is not a batch of normalised images.

    Raises:
        ValueError: the array is not [B, H, W, 3] or not floating-point.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images have shape {images.shape}; [B, H, W, 3] is wanted")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; normalised floating-point pixels are wanted")


def check_implementation(name: str | None) -> None:
    """Refuses a name that `kernels_pallas.vig_mixer` does not know.

    Raises:
        ConfigError: an unknown name; the message has the nearest one.
    """
    if name is not None and name not in IMPLEMENTATIONS:
        near = difflib.get_close_matches(name, IMPLEMENTATIONS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(IMPLEMENTATIONS)}"
        raise ConfigError(f"gla_implementation={name!r} is unknown; {hint}")


@contextlib.contextmanager
def implementation_refusals(name: str | None) -> Iterator[None]:
    """Reports an implementation that cannot serve the model on this device as a `ConfigError`.

    Args:
        name: the model's `gla_implementation`. None, when the operators choose by themselves,
            changes no exception.

    Raises:
        ConfigError: the body raised `NotImplementedError`, as operators do when they refuse a call.
    """
    try:
        yield
    except NotImplementedError as error:
        if name is None:
            raise
        raise ConfigError(f"gla_implementation={name!r}: {error}") from error


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Refuses a width that keys (half of it) and values (all of it) cannot split into heads.

    Raises:
        ConfigError: `embed_dim` is no multiple of twice `num_heads`.
    """
    if num_heads < 1 or embed_dim < 1 or embed_dim % (2 * num_heads):
        raise ConfigError(
            f"embed_dim={embed_dim} must be a multiple of 2 * num_heads ({2 * num_heads}), so that "
            "keys and values split into heads"
        )


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of `depth` blocks, rising linearly from 0 to `last`.

    Raises:
        ConfigError: `last` is not a probability below 1.
    """
    if not 0 <= last < 1:
        raise ConfigError(f"drop_path_rate={last} must be at least 0 and below 1")
    return [float(rate) for rate in np.linspace(0, last, depth)]


def mean_pool(x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """The mean over tokens, accumulated and returned in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
