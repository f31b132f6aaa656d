"""Images of any mix of sizes, packed in rows of tokens: one program, and no padding of images."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Shaped

from vig_jax.data.preprocess.native import split_patches
from vig_jax.errors import ConfigError
from vig_jax.inference.predictor import narrow_kernels
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from vig_jax.models import ViG
from vig_jax.models.backbone import Backbone, implementation_refusals
from vig_jax.sharding.mesh import batch_devices, batch_sharded, replicated


class Packed(NamedTuple):
    """Images in rows of tokens, on the host.

    Attributes:
        patches: the patches of each row's images, one image after the other, then zeros.
        sizes: rows and columns of each image in patches; 0 for no image.
        places: row and number in the row of each image, in the order in which they were given.
    """

    patches: Shaped[np.ndarray, "R T P P C"]
    sizes: Int32[np.ndarray, "R N 2"]
    places: Int32[np.ndarray, "I 2"]


def pack(
    images: Sequence[np.ndarray],
    patch_size: int,
    *,
    tokens: int,
    most_images: int,
    multiple: int = 1,
) -> Packed:
    """Puts images into rows of tokens, the largest first, each into the first row with room.

    Args:
        images: pixels [height, width, C]; sides are multiples of `patch_size`.
        patch_size: pixels per token and side, P.
        tokens: tokens of a row, T.
        most_images: images of a row at most, N.
        multiple: the number of rows is a multiple of it; the last rows may be empty.

    Raises:
        ValueError: there are no images, or one is no [h, w, C] array of the others' type.
        ConfigError: sides do not divide, or an image has more than `tokens` patches.
    """
    if not len(images):
        raise ValueError("there are no images; at least one is needed")
    grids = np.array([_grid(image, images[0], patch_size) for image in images], np.int32)
    lengths = grids.prod(axis=1)
    if lengths.max() > tokens:
        height, width = images[int(lengths.argmax())].shape[:2]
        raise ConfigError(
            f"an image of {height}x{width} pixels has {lengths.max()} patches, a row {tokens} "
            f"tokens: use tokens={lengths.max()} or more, or resize the image"
        )
    places = np.zeros((len(images), 2), np.int32)
    free: list[int] = []
    held: list[int] = []
    for number in np.argsort(-lengths, kind="stable"):
        rows = range(len(free))
        fits = (r for r in rows if free[r] >= lengths[number] and held[r] < most_images)
        row = next(fits, len(free))
        if row == len(free):
            free.append(tokens)
            held.append(0)
        places[number] = row, held[row]
        free[row] -= lengths[number]
        held[row] += 1
    count = -(-len(free) // multiple) * multiple
    shape = (count, tokens, patch_size, patch_size, images[0].shape[2])
    patches = np.zeros(shape, images[0].dtype)
    sizes = np.zeros((count, most_images, 2), np.int32)
    sizes[tuple(places.T)] = grids
    starts = np.cumsum(sizes.prod(axis=2), axis=1) - sizes.prod(axis=2)
    for image, length, (row, place) in zip(images, lengths, places, strict=True):
        start = starts[row, place]
        patches[row, start : start + length] = split_patches(image, patch_size)
    return Packed(patches, sizes, places)


def _grid(image: np.ndarray, first: np.ndarray, patch_size: int) -> tuple[int, int]:
    """Returns the rows and columns of patches of an image, after checks."""
    if image.ndim != 3 or image.shape[2] != first.shape[2] or image.dtype != first.dtype:
        raise ValueError(
            f"an image is {image.dtype} {list(image.shape)}; all must be {first.dtype} "
            f"[height, width, {first.shape[-1]}]"
        )
    height, width = image.shape[:2]
    if height % patch_size or width % patch_size or not height or not width:
        near = [max(1, round(side / patch_size)) * patch_size for side in (height, width)]
        raise ConfigError(
            f"an image has {height}x{width} pixels; packed sides are multiples of {patch_size}: "
            f"resize it to {near[0]}x{near[1]}"
        )
    return height // patch_size, width // patch_size


class PackedPredictor:
    """The result of `packed_predictor`: a function `predict(images) -> logits`.

    Attributes:
        rows: rows of tokens per call of the model.
        tokens: tokens of a row.
        most_images: images of a row at most.
        patch_size: pixels per token and side.
        variables: on the devices; kernels are stored in the dtype of the computation.
        compiled: the program, `compiled(variables, patches, sizes) -> logits [rows, N, classes]`.
    """

    def __init__(
        self,
        model: ViG,
        variables: Mapping[str, Any],
        rows: int,
        tokens: int,
        most_images: int,
        mean: Channels,
        std: Channels,
        mesh: Mesh | None,
    ) -> None:
        self.rows, self.tokens, self.most_images = rows, tokens, most_images
        self.patch_size = model.patch_size
        places = (replicated(mesh), batch_sharded(mesh)) if mesh else (None, None)
        self.variables = jax.device_put(narrow_kernels(variables, model), places[0])

        def logits(variables: Any, patches: jax.Array, sizes: jax.Array) -> Any:
            pixels = normalise(patches.reshape(rows * tokens, *patches.shape[2:]), mean, std)
            return model.apply(variables, pixels.reshape(patches.shape), sizes, method="packed")

        side = self.patch_size
        patches = jax.ShapeDtypeStruct((rows, tokens, side, side, 3), jnp.uint8)
        sizes = jax.ShapeDtypeStruct((rows, most_images, 2), jnp.int32)
        run = jax.jit(logits, in_shardings=(*places, places[1]))
        ambient = jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
        with implementation_refusals(model.gla_implementation), ambient:
            self.compiled = run.lower(self.variables, patches, sizes).compile()

    def __call__(self, images: Sequence[np.ndarray]) -> Float[Array, "I classes"]:
        """Returns the class logits of any number of images, in their order.

        Args:
            images: uint8 [height, width, 3] of any mix of sizes.

        Raises:
            ValueError: an image is not uint8 [height, width, 3], or there is none.
            ConfigError: a side is no multiple of `patch_size`, or an image is larger than a row.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"an image is {image.dtype} {list(image.shape)}; it must be uint8 "
                    "[height, width, 3]"
                )
        packed = pack(
            images,
            self.patch_size,
            tokens=self.tokens,
            most_images=self.most_images,
            multiple=self.rows,
        )
        outputs = [  # all calls are queued at once
            self.compiled(
                self.variables,
                packed.patches[start : start + self.rows],
                packed.sizes[start : start + self.rows],
            )
            for start in range(0, len(packed.patches), self.rows)
        ]
        logits = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
        return logits[tuple(packed.places.T)]


def packed_predictor(
    model: Backbone,
    variables: Mapping[str, Any],
    *,
    tokens: int = 4096,
    rows: int = 1,
    most_images: int | None = None,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    mesh: Mesh | None = None,
) -> PackedPredictor:
    """Compiles a plain model for inference on images of any mix of sizes.

    The images of a call are packed into rows of tokens on the host. No token is spent on padding
    except at the ends of rows, and the logits of an image are those of the image alone, up to
    rounding. Weights are stored as by `vig_jax.predictor`.

    Args:
        model: a plain ViG from `create_model`; its sides must be multiples of `patch_size`.
        variables: from `load_weights` or `model.init`.
        tokens: tokens of a row. An image has height * width / patch_size**2; the largest must fit.
        rows: rows per call of the model.
        most_images: images of a row at most; one for 64 tokens if None.
        mean: mean of the training pixels, in units of [0, 1].
        std: standard deviation of the training pixels, in units of [0, 1].
        mesh: devices that share the rows, as for `vig_jax.predictor`. None: one device.

    Raises:
        ConfigError: the model is no plain ViG, a number is below 1, or the mesh cannot split the
            rows.
    """
    if not isinstance(model, ViG):
        raise ConfigError(
            f"{type(model).__name__} cannot take packed images, since its stages change the grids: "
            "use a plain ViG, or features(sizes=...) for images in canvases"
        )
    most_images = max(1, tokens // 64) if most_images is None else most_images
    if min(tokens, rows, most_images) < 1:
        raise ConfigError(
            f"tokens={tokens}, rows={rows} and most_images={most_images} must be at least 1"
        )
    if mesh and rows % batch_devices(mesh):
        raise ConfigError(
            f"rows={rows} cannot be split over {batch_devices(mesh)} devices: use a multiple of "
            f"{batch_devices(mesh)}"
        )
    return PackedPredictor(model, variables, rows, tokens, most_images, mean, std, mesh)
