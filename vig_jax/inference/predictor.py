"""`predictor`: a model compiled once for inference on uint8 images."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, UInt8

from vig_jax.errors import ConfigError
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from vig_jax.models.backbone import implementation_refusals


class Predictor:
    """What `predictor` returns: `logits = predict(images)`.

    Attributes:
        batch_size: images that go through the model at once.
        image_size: height and width of the images, pixels.
        variables: on the device; kernels in the type they are computed with.
        compiled: the program, `compiled(variables, images) -> logits` for one whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        batch_size: int,
        image_size: tuple[int, int],
        mean: Channels,
        std: Channels,
    ) -> None:
        self.batch_size = batch_size
        self.image_size = image_size
        self.variables = jax.device_put(_narrow(variables, getattr(model, "dtype", None)))

        def logits(variables: Any, images: jax.Array) -> Any:
            return model.apply(variables, normalise(images, mean, std))

        images = jax.ShapeDtypeStruct((batch_size, *image_size, 3), jnp.uint8)
        with implementation_refusals(getattr(model, "gla_implementation", None)):
            self.compiled = jax.jit(logits).lower(self.variables, images).compile()

    def __call__(self, images: UInt8[Array | np.ndarray, "N H W 3"]) -> Float[Array, "N classes"]:
        """Class logits of any number of images; the last batch is filled up.

        Raises:
            ValueError: the images are not uint8, not of the size that was compiled, or none.
        """
        height, width = self.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; uint8 [N, {height}, {width}, 3] is "
                "wanted (another size needs a predictor of its own)"
            )
        if not len(images):
            raise ValueError("there is no image")
        outputs = []
        for start in range(0, len(images), self.batch_size):  # all are queued, none is waited for
            batch = images[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            if missing:
                pad = jnp.pad if isinstance(batch, jax.Array) else np.pad
                batch = pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            outputs.append(self.compiled(self.variables, batch))
        logits = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
        return logits[: len(images)]


def predictor(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch_size: int,
    image_size: int | tuple[int, int],
    *,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> Predictor:
    """Compiles a model for inference; the result takes uint8 images and normalises on the device.

    Where the model computes in bfloat16, its kernels are kept in bfloat16: half the memory, no
    cast per call, and the same logits to the bit, as the layers would cast them.

    Args:
        model: of `create_model`.
        variables: of `load_weights` or `model.init`.
        batch_size: images per call of the device.
        image_size: side of the square images in pixels, or height and width.
        mean: of the pixels the model was trained with, in units of [0, 1].
        std: the same, standard deviation.

    Raises:
        ConfigError: a size below 1, or one that the model refuses.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if batch_size < 1 or min(size) < 1:
        raise ConfigError(f"batch_size={batch_size} and image_size={image_size} must be at least 1")
    return Predictor(model, variables, batch_size, size, mean, std)


def _narrow(variables: Mapping[str, Any], dtype: Any) -> Any:
    """The kernels of narrow computations in their type; the head's logits are float32."""
    if dtype is None or jnp.finfo(dtype).bits >= 32:
        return variables
    flat = traverse_util.flatten_dict(variables)
    return traverse_util.unflatten_dict(
        {
            path: x.astype(dtype) if path[-1] == "kernel" and "head" not in path else x
            for path, x in flat.items()
        }
    )
