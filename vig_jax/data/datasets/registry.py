"""Opens data sets by name: an index in, an encoded image and a label out.

`config.data.source` is one of `dataset_names()`; the module of each data set documents the layout
of its files. `register_dataset` adds one. A file that cannot be decoded does not stop a run: see
`vig_jax.data.loader.bad_images`.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from vig_jax.config import DataConfig
from vig_jax.data.dataset import (
    ClassificationBase,
    ClassificationDataset,
    Dataset,
    Example,
    Part,
    Split,
)
from vig_jax.data.datasets import elpv, nuclei
from vig_jax.data.datasets.fashion_mnist import FashionMnistDataset
from vig_jax.data.datasets.fashion_scenes import FashionScenesDataset
from vig_jax.data.datasets.scenes import open_ade20k, open_cityscapes, open_voc
from vig_jax.data.datasets.split import StratifiedDataset
from vig_jax.data.datasets.voc_boxes import open_voc_detection
from vig_jax.data.formats.array_record import open_array_record
from vig_jax.data.formats.coco import CocoDataset, open_coco
from vig_jax.data.formats.image_folder import open_image_folder
from vig_jax.data.formats.mask_folder import open_mask_folder
from vig_jax.data.formats.parquet import open_parquet
from vig_jax.data.formats.segmentation_folder import SegmentationFolder
from vig_jax.data.formats.tar import open_tar
from vig_jax.errors import ConfigError, DataSetError
from vig_jax.text import did_you_mean

Opener = Callable[[DataConfig, Split], Dataset]


def register_dataset(name: str, open: Opener) -> None:
    """Makes a data set available as `config.data.source=name`.

    Args:
        name: not in use yet.
        open: opens the training ("train") or the evaluation split ("eval"). It should raise
            `DataSetError` if the data set is missing or damaged.

    Raises:
        ConfigError: the name is in use.
    """
    if name in dataset_names():
        raise ConfigError(f"{name!r} is the name of a data set already: choose another one")
    _REGISTERED[name] = open


def registered_datasets() -> tuple[str, ...]:
    """Returns the names that `register_dataset` has added."""
    return tuple(_REGISTERED)


def dataset_names() -> tuple[str, ...]:
    """Returns the values that `config.data.source` may have."""
    return (*FILES, *MASKS, *BOXES, *_OPENERS, *_REGISTERED)


def open_dataset(data: DataConfig, split: Split) -> Dataset:
    """Opens one split of the data set that a configuration names.

    Args:
        data: `source` and `path` name the data set. `split`, `val_fraction` and `split_seed` say
            how to divide it; `image_size` is for "fashion_scenes", "nuclei" and "synthetic".
        split: "train" or "eval".

    Returns:
        The data set.

    Raises:
        DataSetError: the name is unknown, or files are missing, empty, damaged or have an
            unknown layout.
    """
    if data.source not in dataset_names():
        raise DataSetError(
            f"config.data.source={data.source!r} is not a data set; "
            f"{did_you_mean(data.source, dataset_names())}"
        )
    if data.split == "random" and data.source not in DIVIDED:
        raise DataSetError(
            f"config.data.split=random is for config.data.source={' or '.join(DIVIDED)}, not "
            f"{data.source!r}: use 'stratified' for files of one class each, or 'given'"
        )
    if data.split == "stratified":
        return StratifiedDataset(open_whole(data), split, data.val_fraction, data.split_seed)
    if data.source in FILES:
        return FILES[data.source](data.path, split)
    if data.source in MASKS:
        masks = MASKS[data.source](data, split)
        masks.check()
        return masks
    openers: Mapping[str, Opener] = {**BOXES, **_OPENERS, **_REGISTERED}
    return openers[data.source](data, split)


def open_whole(data: DataConfig) -> ClassificationDataset:
    """Opens a data set that is not divided into training and evaluation images.

    Raises:
        DataSetError: it has a validation split, or cannot be opened.
    """
    if data.source not in FILES:
        raise DataSetError(
            f"config.data.source={data.source!r} has a validation split already: "
            "config.data.split=stratified is for files without one"
        )
    return FILES[data.source](data.path, "all")


class SyntheticDataset(ClassificationBase):
    """Noise with arbitrary labels, for measuring speed. An index always gives the same example.

    Args:
        side: of the square images, pixels.
        length: number of examples.
        num_classes: labels repeat 0 to num_classes - 1.
    """

    def __init__(self, side: int, length: int, num_classes: int = 1000):
        super().__init__("synthetic", [f"class {label}" for label in range(num_classes)])
        self._side = side
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        noise = np.random.Generator(np.random.Philox(key=index)).bytes(self._side**2 * 3)
        image = np.frombuffer(noise, np.uint8).reshape(self._side, self._side, 3)
        return {"image": image, "label": index % self.num_classes}

    def labels(self) -> Int[np.ndarray, "n"]:
        """Returns the label of every example, int32."""
        return np.arange(self._length, dtype=np.int32) % self.num_classes

    def name_of(self, index: int) -> str:
        """Returns an invented path."""
        return f"synthetic/{index}"

    def known_sizes(self) -> Int[np.ndarray, "n 2"]:
        """Returns the side of the images."""
        return np.full((len(self), 2), self._side, np.int32)

    def digest(self) -> str:
        """Hashes the sizes."""
        sizes = f"synthetic {self._side} {self._length} {self.num_classes}"
        return hashlib.sha256(sizes.encode()).hexdigest()


def _open_synthetic(data: DataConfig, split: Split) -> Dataset:
    return SyntheticDataset(data.image_size, 65_536 if split == "train" else 4_096)


def _open_elpv(data: DataConfig, split: Split) -> Dataset:
    folder = elpv.find_folder()
    if folder is None:
        raise DataSetError(
            "config.data.source='elpv' reads the photographs of the package elpv-dataset, which is "
            f"not installed: {elpv.PIP_COMMAND} (91 MB; CC-BY-NC-SA 4.0, so not for commercial use)"
        )
    return elpv.ElpvDataset(folder, split)


def _open_nuclei(data: DataConfig, split: Split) -> Dataset:
    folder = nuclei.find_folder()
    if folder is None:
        raise DataSetError(
            "config.data.source='nuclei' reads an image of the package stardist, which is not "
            f"installed: {nuclei.PIP_COMMAND} (3 MB; its dependencies are not needed)"
        )
    return nuclei.NucleiDataset(folder, split, data.image_size)


# Data sets that are files in a folder.
FILES: dict[str, Callable[[str | None, Part], ClassificationDataset]] = {
    "array_record": open_array_record,
    "image_folder": open_image_folder,
    "parquet": open_parquet,
    "tar": open_tar,
}

# Data sets that are images and masks in folders.
MASKS: dict[str, Callable[[DataConfig, Split], SegmentationFolder]] = {
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "mask_folder": open_mask_folder,
    "voc": open_voc,
}

# Data sets that config.data.split="random" can divide.
DIVIDED = ("mask_folder", "coco")

# Data sets that are images and boxes.
BOXES: dict[str, Callable[[DataConfig, Split], CocoDataset]] = {
    "coco": open_coco,
    "voc_detection": open_voc_detection,
}

_OPENERS: dict[str, Opener] = {
    "elpv": _open_elpv,
    "fashion_mnist": lambda data, split: FashionMnistDataset(split),
    "fashion_scenes": lambda data, split: FashionScenesDataset(split, data.image_size),
    "nuclei": _open_nuclei,
    "synthetic": _open_synthetic,
}
_REGISTERED: dict[str, Opener] = {}
