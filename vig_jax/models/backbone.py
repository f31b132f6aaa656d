"""The contract of a backbone, and the checks that all model families share."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels_pallas.vig_mixer import IMPLEMENTATIONS
from vig_jax.errors import ConfigError
from vig_jax.layers.linear import Dtype
from vig_jax.sharding.sequence import row_devices
from vig_jax.text import did_you_mean

Sizes = Int[Array | np.ndarray, "B 2"]  # height and width in pixels of the valid part of images


class FeatureInfo(NamedTuple):
    """Description of one map that `features` returns, in timm's terms.

    Attributes:
        num_chs: number of channels.
        reduction: stride relative to the image.
        module: path of the module that makes the map.
    """

    num_chs: int
    reduction: int
    module: str


@runtime_checkable
class ParameterGroups(Protocol):
    """A model that knows which of its parameters belong together."""

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """First names of the parameter paths that are the head; all others are the backbone."""

    def layer_ids(self, params: Any) -> tuple[Any, int]:
        """Returns the layer number of every parameter, and the number of the last layer.

        Args:
            params: the parameter tree of the model; only its structure counts.

        Returns:
            A tree of ints from 0 (the stem) to n + 1 (the last norm and the head) for n blocks, and
            n + 1.
        """


@runtime_checkable  # not inherited: Python 3.12.2 and later need it here, too
class Backbone(ParameterGroups, Protocol):
    """A `flax.linen.Module` with the members that the rest of the package relies on.

    Attributes:
        num_classes: width of the classification head; 0 means no head, and calling the model
            returns pooled features.
        in_chans: channels of the images.
        dtype: dtype of the computation; None promotes images and parameters.
        gla_implementation: see `kernels_pallas.vig_mixer`; None chooses the best for the device.
    """

    num_classes: int
    in_chans: int
    dtype: Dtype
    gla_implementation: str | None

    @property
    def native_size(self) -> int | None:
        """Image side in pixels that the parameters are made for; None if any size is as good."""

    @property
    def smallest_size(self) -> int:
        """Smallest image side in pixels."""

    @property
    def pos_embed_grid(self) -> int | None:
        """Side of the square grid of the position embedding; None if there is none."""

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and number of blocks of each stage; plain models have one stage."""

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of the maps that `features` returns by default."""

    def __hash__(self) -> int:
        """Returns a hash of the settings: models with equal settings share compiled functions."""

    def __call__(self, images: Float[Array, "B H W in_chans"], train: bool = False) -> Any:
        """Returns logits [B, num_classes], or pooled features [B, D] without a head."""

    def features(
        self,
        images: Float[Array, "B H W in_chans"],
        *,
        out_indices: Sequence[int] | None = None,
        train: bool = False,
        sizes: Sizes | None = None,
        padded_right: bool = True,
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """Returns maps [B, h, w, D].

        Args:
            images: normalised pixels; any content in the padding, also NaN.
            out_indices: selects blocks or stages.
            train: enables drop path.
            sizes: height and width in pixels of the valid part of each image, the top-left one;
                None if nothing is padded. The maps of a valid part are those of the part as an
                image alone, and zero in the padding, whatever the canvas. Each number is a
                multiple of the model's largest stride; 0 for a row without an image. This is not
                checked if the array is traced, as under `jax.jit`.
            padded_right: False promises that every width in `sizes` is that of the canvas, which
                saves two passes over memory a block.
        """

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns fresh variables; see `flax.linen.Module.init`."""

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the model with these variables; see `flax.linen.Module.apply`."""


def checked_sizes(
    sizes: Sizes, images: jax.Array, stride: int, padded_right: bool
) -> Int[Array, "B 2"]:
    """Returns `sizes` as int32, after checks of the shape and, unless traced, of the values.

    Args:
        sizes: see `Backbone.features`.
        images: the padded images [B, H, W, in_chans].
        stride: the largest stride of the model.
        padded_right: see `Backbone.features`.

    Raises:
        ValueError: the array is not [B, 2] integers, or (ConfigError) a value does not fit, or the
            rows of images are split over devices.
    """
    if sizes.shape != (len(images), 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes are {sizes.dtype}{list(sizes.shape)}; they must be integers "
            f"[{len(images)}, 2]: height and width of each image"
        )
    if row_devices() > 1:
        raise ConfigError(
            f"padded images cannot be split by rows over {row_devices()} devices: use "
            "config.mesh.sequence=1, or images of one size without sizes"
        )
    canvas = images.shape[1:3]
    if not isinstance(sizes, jax.core.Tracer):
        for height, width in np.asarray(sizes).tolist():
            fits = 0 <= height <= canvas[0] and 0 <= width <= canvas[1]
            if not fits or height % stride or width % stride:
                raise ConfigError(
                    f"size {height}x{width} must be multiples of {stride} up to the images' "
                    f"{canvas[0]}x{canvas[1]} pixels: round it up and let zeros fill the rest"
                )
            if not padded_right and height and width != canvas[1]:
                raise ConfigError(
                    f"size {height}x{width} is narrower than the images' {canvas[1]} pixels; "
                    "padded_right=False needs all columns: pass padded_right=True"
                )
    return jnp.asarray(sizes, jnp.int32)


def checked_packed_sizes(
    patches: jax.Array, sizes: Int[Array | np.ndarray, "R N 2"], patch_size: int, channels: int
) -> Int[Array, "R N 2"]:
    """Returns `sizes` as int32, after checks of shapes and, unless traced, of the values.

    Args:
        patches: the patches of packed images [R, T, P, P, channels].
        sizes: rows and columns of each image in patches.
        patch_size: P of the model.
        channels: those of the model's images.

    Raises:
        ValueError: the arrays are not floats and integers of these shapes, or (ConfigError) images
            are too large for a row, P is too small, or the rows of images are split over devices.
    """
    if patch_size < 4:  # the stem then makes a token more than whole patches
        raise ConfigError(f"patch_size={patch_size} must be at least 4 for packed images")
    if row_devices() > 1:
        raise ConfigError(
            f"packed images cannot be split by rows over {row_devices()} devices: use a mesh whose "
            "axis sequence has one device"
        )
    if patches.ndim != 5 or patches.shape[2:] != (patch_size, patch_size, channels):
        raise ValueError(
            f"patches have shape {patches.shape}; they must be [rows, tokens, {patch_size}, "
            f"{patch_size}, {channels}]"
        )
    if not jnp.issubdtype(patches.dtype, jnp.floating):
        raise ValueError(f"patches are {patches.dtype}; they must be normalised floats")
    rows, tokens = patches.shape[:2]
    fits = sizes.ndim == 3 and (sizes.shape[0], sizes.shape[2]) == (rows, 2)
    if not fits or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes are {sizes.dtype}{list(sizes.shape)}; they must be integers [{rows}, N, 2]: "
            "rows and columns of each image in patches"
        )
    if not isinstance(sizes, jax.core.Tracer):
        most = int(np.asarray(sizes).prod(axis=2).sum(axis=1).max(initial=0))
        if most > tokens or (np.asarray(sizes) < 0).any():
            raise ConfigError(
                f"images with {most} patches are more than the {tokens} tokens of a row, or a size "
                "is negative: use fewer images in a row"
            )
    return jnp.asarray(sizes, jnp.int32)


def check_images(images: jax.Array, channels: int) -> None:
    """Checks that an array is a batch of normalised images.

    Raises:
        ValueError: the array is not [B, H, W, channels] or not floating-point.
    """
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(f"images have shape {images.shape}; they must be [B, H, W, {channels}]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; they must be normalised floats")


def check_indices(out_indices: Sequence[int], count: int, unit: str) -> tuple[int, ...]:
    """Returns `out_indices` with negative ones counted from the end.

    Args:
        out_indices: indices from -count to count - 1.
        count: number of blocks or stages.
        unit: "blocks" or "stages", for the message.

    Raises:
        ConfigError: there is no index, or one is out of range.
    """
    if not out_indices or not all(-count <= index < count for index in out_indices):
        raise ConfigError(
            f"out_indices={tuple(out_indices)} must be one or more of {-count} to {count - 1}: the "
            f"model has {count} {unit}"
        )
    return tuple(index % count for index in out_indices)


def check_implementation(name: str | None) -> None:
    """Checks that `kernels_pallas.vig_mixer` has an implementation of this name.

    Raises:
        ConfigError: an unknown name; the message suggests the nearest one.
    """
    if name is not None and name not in IMPLEMENTATIONS:
        hint = did_you_mean(name, IMPLEMENTATIONS)
        raise ConfigError(f"gla_implementation={name!r} is unknown; {hint}")


@contextlib.contextmanager
def implementation_refusals(name: str | None) -> Iterator[None]:
    """Reports an implementation that cannot serve the model on this device as a `ConfigError`.

    Args:
        name: the model's `gla_implementation`. For None, when the operators choose for themselves,
            no exception is changed.

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
    """Checks that keys (half of the width) and values (the full width) split into heads.

    Raises:
        ConfigError: `embed_dim` is not a multiple of twice `num_heads`.
    """
    if num_heads < 1 or embed_dim < 1 or embed_dim % (2 * num_heads):
        raise ConfigError(
            f"embed_dim={embed_dim} must be a multiple of 2 * num_heads ({2 * num_heads}), so that "
            "keys and values split into heads"
        )


def check_classes(num_classes: int) -> None:
    """Checks the width of a head.

    Raises:
        ConfigError: `num_classes` is negative.
    """
    if num_classes < 0:
        raise ConfigError(f"num_classes={num_classes} must be at least 0; 0 means no head")


def check_channels(in_chans: int) -> None:
    """Checks the number of channels of images.

    Raises:
        ConfigError: it is below 1.
    """
    if in_chans < 1:
        raise ConfigError(f"in_chans={in_chans} must be at least 1")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Returns the rates of `depth` blocks, rising linearly from 0 to `last`.

    Raises:
        ConfigError: `last` is not a probability below 1.
    """
    if not 0 <= last < 1:
        raise ConfigError(f"drop_path_rate={last} must be at least 0 and below 1")
    return [float(rate) for rate in np.linspace(0, last, depth)]
