"""The images of evaluation, made on the host from single images."""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vig_jax.config import DataConfig, TaskConfig
from vig_jax.data.preprocess.decode import load, to_rgb
from vig_jax.data.preprocess.geometry import draw_view, image_size
from vig_jax.errors import ConfigError
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.models import ViG, ViGH
from vig_jax.weights.published import published_config


def data_config(
    model: LoadedModel | ViG | ViGH | str, size: int | tuple[int, int] | None = None
) -> DataConfig:
    """Returns the settings of the images that a classifier is evaluated with.

    Args:
        model: from `from_pretrained`: the settings of its training; a module from `create_model` or
            the name of one: those of the published weights.
        size: side of the images in pixels, or height and width; None means that of training.

    Returns:
        `image_size` (or `eval_size`, height and width), `crop_pct`, `mean`, `std` and more; the
        filter is bicubic.

    Raises:
        ConfigError: an unknown model, or a loaded one that is no classifier.
    """
    if isinstance(model, LoadedModel):
        task = model.config.task.name
        if task != TaskConfig.name:
            raise ConfigError(
                f"a model for {task} takes whole images, not crops of one size: use vig predict "
                "or vig_jax.inference.file_predictor.file_predictor(model)"
            )
        data = model.config.data
    elif isinstance(model, str):
        data = published_config(model).data
    else:
        name = "vig_t" if isinstance(model, ViG) else "vig_h_t"  # the images of a family are alike
        data = published_config(name, image_size=model.native_size).data
    if size is None:
        return data
    pair = (size, size) if isinstance(size, int) else size
    return dataclasses.replace(data, eval_size=pair)


@dataclasses.dataclass(frozen=True)
class Transform:
    """The result of `create_transform`: a function from an image to an array.

    Attributes:
        data: `image_size` or `eval_size`, `crop_pct`, `mean`, `std`.
        normalised: whether the result is what a model takes, or uint8 pixels.
    """

    data: DataConfig
    normalised: bool

    def __call__(
        self, image: Image.Image | np.ndarray | bytes
    ) -> Float32[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W 3"]:
        """Resizes the shorter side, crops the middle and, if `normalised`, normalises.

        Args:
            image: a Pillow image of any mode, RGB pixels uint8 [h, w, 3], or the contents of an
                image file. An EXIF orientation is not applied, as in training.

        Raises:
            UndecodableImageError: the contents are no image.
            ValueError: an array that is not uint8 [h, w, 3].
        """
        pixels = to_rgb(image) if isinstance(image, Image.Image) else load(image, self.data)
        result = draw_view(image_size(pixels), self.data, None).image(pixels)
        if not self.normalised:
            return result
        mean, std = (np.asarray(x, np.float32) for x in (self.data.mean, self.data.std))
        return (result.astype(np.float32) / np.float32(255) - mean) / std


def create_transform(data: DataConfig, *, normalised: bool = True) -> Transform:
    """Returns the function that prepares an image as in evaluation, with the same pixels.

    Args:
        data: from `data_config`.
        normalised: True gives float32 for `model.apply`; False gives uint8 for `predictor`, which
            normalises on the device.
    """
    return Transform(data, normalised)
