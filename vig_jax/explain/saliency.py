"""Saliency: what every pixel adds to the logit of a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from vig_jax.errors import ConfigError
from vig_jax.models.backbone import Backbone


def class_saliency(
    model: Backbone | nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "B H W C"],
    classes: Sequence[int],
    *,
    steps: int = 32,
) -> Float32[np.ndarray, "B H W"]:
    """Returns the integrated gradients of a logit: image x mean gradient, summed over colours.

    The mean is over `steps` images between one of the mean colour, which is 0 when normalised, and
    the image. The sum over an image is the difference of the logits of both, up to the error of the
    sum. With one step, the gradient is that at half of the contrast. Source: Sundararajan et al.,
    "Axiomatic Attribution for Deep Networks" (ICML 2017).

    Args:
        model: returns logits [B, classes].
        variables: of the model.
        images: normalised pixels.
        classes: a label for each image.
        steps: gradients per image.

    Raises:
        ConfigError: a label is out of range, or `steps` is below 1.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1")
    shape = jax.eval_shape(model.apply, variables, images).shape
    for label in classes:
        check_class(label, shape[-1])

    def logit(image: jax.Array, variables: Any, label: jax.Array) -> jax.Array:
        logits = model.apply(variables, image[None])
        assert isinstance(logits, jax.Array)
        return logits[0, label]

    @jax.jit
    def contributions(variables: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        def add(total: jax.Array, fraction: jax.Array) -> tuple[jax.Array, None]:
            return total + jax.grad(logit)(fraction * image, variables, label), None

        fractions = (jnp.arange(steps, dtype=image.dtype) + 0.5) / steps  # midpoints
        total, _ = jax.lax.scan(add, jnp.zeros_like(image), fractions)
        return jnp.sum(image * total / steps, axis=-1)

    pixels = jnp.asarray(images)
    found = [contributions(variables, *x) for x in zip(pixels, jnp.asarray(classes), strict=True)]
    return np.stack(jax.device_get(found)).astype(np.float32)


def check_class(label: int, classes: int) -> None:
    """Checks a label.

    Raises:
        ConfigError: the model has no such class.
    """
    if not 0 <= label < classes:
        raise ConfigError(
            f"class {label} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )
