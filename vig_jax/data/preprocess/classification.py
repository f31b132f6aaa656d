"""Preprocessing for image classification: decode, crop, resize, flip."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Example
from vig_jax.data.preprocess.decode import check_settings, load_checked
from vig_jax.data.preprocess.geometry import Pixels, draw_view, image_size
from vig_jax.data.preprocess.protocol import DAMAGED, Spec
from vig_jax.errors import ConfigError, DataSetError


@dataclasses.dataclass(frozen=True)
class ClassificationPreprocess:
    """Makes `image` uint8 [S, S, 3] and `label` int32 [] from one example.

    Args:
        data: S is `data.image_size`; crop, flip, and whether the fast kernel may be used. In
            evaluation images have `data.eval_size` if it is set.
        train: draw random views. Otherwise, and without a generator, every image gets the view of
            evaluation.

    Raises:
        ConfigError: a setting is out of range.
        DataSetError: `data.resize` is "numba" and the kernel cannot be used.
    """

    data: DataConfig
    train: bool

    def __post_init__(self) -> None:
        check_data(self.data)

    @property
    def spec(self) -> Spec:
        """Shape and dtype of `image` and `label`."""
        height, width = self.data.eval_size or (self.data.image_size,) * 2
        image = (height, width, 3), np.dtype(np.uint8)
        return {"image": image, "label": ((), np.dtype(np.int32))}

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Decodes the image and applies a random view, or the view of evaluation.

        Raises:
            UndecodableImageError: the image is truncated, empty, or not an image.
            DataSetError: the label does not fit into int32.
        """

        def view(image: Pixels) -> UInt8[np.ndarray, "h w 3"]:
            drawn = draw_view(image_size(image), self.data, rng if self.train else None)
            return drawn.image(image)

        return labelled(example, self.data, view)


def labelled(
    example: Example, data: DataConfig, view: Callable[[Pixels], UInt8[np.ndarray, "h w 3"]]
) -> Mapping[str, np.ndarray]:
    """Returns `image` and `label` of an example, and `DAMAGED` if its file is.

    Args:
        example: of a data set.
        data: settings of decoding.
        view: makes the pixels to return from the decoded image.

    Raises:
        UndecodableImageError: the image is truncated, empty, or not an image.
        DataSetError: the label does not fit into int32.
    """
    label = int(example["label"])
    if not -(2**31) <= label < 2**31:
        raise DataSetError(f"a label is {label}; labels must fit into 32 bits")
    image, damage = load_checked(example["image"], data)
    arrays = {"image": view(image), "label": np.array(label, np.int32)}
    return arrays | ({DAMAGED: np.array(damage)} if damage else {})


def check_data(data: DataConfig) -> None:
    """Checks the settings of the views of a classifier, and those of decoding.

    Raises:
        ConfigError: a setting is out of range.
        DataSetError: as `check_settings` does.
    """
    requirements = {
        "image_size": (data.image_size >= 1, "at least 1"),
        "crop_scale": (0 < data.crop_scale[0] <= data.crop_scale[1] <= 1, "0 < low <= high <= 1"),
        "crop_ratio": (0 < data.crop_ratio[0] <= data.crop_ratio[1], "0 < low <= high"),
        "crop_padding": (data.crop_padding >= 0, "at least 0"),
        "hflip": (0 <= data.hflip <= 1, "a probability"),
        "crop_pct": (0 < data.crop_pct <= 1, "above 0 and at most 1"),
    }
    for name, (holds, required) in requirements.items():
        if not holds:
            raise ConfigError(f"config.data.{name}={getattr(data, name)} must be {required}")
    check_settings(data)
