"""A model compiled once for inference on uint8 images."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from vig_jax.errors import ConfigError
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from vig_jax.models.backbone import Backbone, implementation_refusals
from vig_jax.sharding.mesh import batch_devices, images_sharded, replicated


class Predictor:
    """The result of `predictor`: a function `predict(images) -> logits`.

    Attributes:
        batch_size: number of images per call of the model.
        image_size: height and width of the images in pixels.
        variables: on the devices; kernels are stored in the dtype of the computation. Empty if the
            weights are in the program.
        compiled: the program, `compiled(variables, images) -> logits` for one full batch.
    """

    def __init__(
        self,
        model: Backbone,
        variables: Mapping[str, Any],
        batch_size: int,
        image_size: tuple[int, int],
        mean: Channels,
        std: Channels,
        mesh: Mesh | None,
        weights_in_program: bool,
    ) -> None:
        self.batch_size = batch_size
        self.image_size = image_size
        places = (replicated(mesh), images_sharded(mesh)) if mesh else (None, None)
        weights = jax.device_put(narrow_kernels(variables, model), places[0])
        self.variables = {} if weights_in_program else weights

        def logits(variables: Any, images: jax.Array) -> Any:
            return model.apply(variables or weights, normalise(images, mean, std))

        images = jax.ShapeDtypeStruct((batch_size, *image_size, 3), jnp.uint8)
        run = jax.jit(logits, in_shardings=places)
        ambient = jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
        with implementation_refusals(model.gla_implementation), ambient:
            self.compiled = run.lower(self.variables, images).compile()

    def __call__(self, images: UInt8[Array | np.ndarray, "N H W 3"]) -> Float[Array, "N classes"]:
        """Returns the class logits of any number of images; the last batch is padded.

        Raises:
            ValueError: the images are not uint8, not of the size that was compiled, or none.
        """
        height, width = self.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; they must be uint8 "
                f"[N, {height}, {width}, 3]. Make another predictor for another size"
            )
        if not len(images):
            raise ValueError("there are no images; at least one is needed")
        outputs = []
        for start in range(0, len(images), self.batch_size):  # all batches are queued at once
            batch = images[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            if missing:
                pad = jnp.pad if isinstance(batch, jax.Array) else np.pad
                batch = pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            outputs.append(self.compiled(self.variables, batch))
        logits = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
        return logits if len(logits) == len(images) else logits[: len(images)]


def predictor(
    model: Backbone,
    variables: Mapping[str, Any],
    batch_size: int,
    image_size: int | tuple[int, int],
    *,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    mesh: Mesh | None = None,
    weights_in_program: bool = False,
) -> Predictor:
    """Compiles a model for inference. The result takes uint8 images and normalises on the device.

    For a model that computes in bfloat16, the kernels are stored in bfloat16. That halves the
    memory and saves a cast per call. The logits are identical, because the layers cast as well.

    Args:
        model: from `create_model`.
        variables: from `load_weights` or `model.init`.
        batch_size: images per call of the model.
        image_size: side of the square images in pixels, or height and width.
        mean: mean of the training pixels, in units of [0, 1].
        std: standard deviation of the training pixels, in units of [0, 1].
        mesh: devices that share the work, from `vig_jax.sharding.mesh.make_mesh`: the axes `data`
            and `fsdp` split the batch, and `sequence` the rows of each image. None: one device.
        weights_in_program: compiles the weights into the program as constants. A call of a small
            batch then takes less time on the host, and what depends on weights alone is computed
            once. Compiling takes longer.

    Raises:
        ConfigError: a size below 1, or one that the model refuses or the mesh cannot split.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if batch_size < 1 or min(size) < 1:
        raise ConfigError(f"batch_size={batch_size} and image_size={image_size} must be at least 1")
    if mesh and batch_size % batch_devices(mesh):
        raise ConfigError(
            f"batch_size={batch_size} cannot be split over {batch_devices(mesh)} devices: use a "
            f"multiple of {batch_devices(mesh)}"
        )
    return Predictor(model, variables, batch_size, size, mean, std, mesh, weights_in_program)


def narrow_kernels(variables: Mapping[str, Any], model: Backbone) -> Any:
    """Casts the kernels to the model's dtype if it is narrow, but not the head's: it is float32."""
    dtype, heads = model.dtype, model.head_prefixes
    if dtype is None or jnp.finfo(dtype).bits >= 32:
        return variables
    flat = traverse_util.flatten_dict(variables)
    return traverse_util.unflatten_dict(
        {
            path: x.astype(dtype) if path[-1] == "kernel" and path[1] not in heads else x
            for path, x in flat.items()
        }
    )
