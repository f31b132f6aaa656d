"""Data sets as random access: index in, encoded image and label out.

`config.data.source` names one of `SOURCES`; the module of each says how its files are laid out. A
file that cannot be decoded does not stop a run: see `vig_jax.data.loader.bad_images`.
"""

import difflib
import hashlib
from collections.abc import Callable

import numpy as np

from vig_jax.config import DataConfig
from vig_jax.data.datasets.elpv import PIP_COMMAND, ElpvSource, find_folder
from vig_jax.data.datasets.fashion_mnist import FashionMnistSource
from vig_jax.data.datasets.split import StratifiedSource
from vig_jax.data.example import Example
from vig_jax.data.formats.array_record import open_array_record
from vig_jax.data.formats.image_folder import ImageFolderSource, is_image, open_image_folder
from vig_jax.data.formats.parquet import open_parquet
from vig_jax.data.formats.tar import open_tar
from vig_jax.data.source import Part, Source, Split
from vig_jax.errors import DataSetError

__all__ = [
    "FILES",
    "SOURCES",
    "DataSetError",
    "ImageFolderSource",
    "Source",
    "Split",
    "SyntheticSource",
    "is_image",
    "open_source",
]


def open_source(data: DataConfig, split: Split) -> Source:
    """Opens one split of the data set that a configuration names.

    Args:
        data: `source` and `path` say which; `split`, `val_fraction` and `split_seed` how it is
            divided; `image_size` is for "synthetic".
        split: "train" or "eval".

    Returns:
        The source.

    Raises:
        DataSetError: unknown name, or files that are missing, empty, damaged or not laid out as
            expected.
    """
    if data.source not in SOURCES:
        near = difflib.get_close_matches(data.source, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {sorted(SOURCES)}"
        raise DataSetError(f"config.data.source={data.source!r} is not a data set; {hint}")
    if data.split == "given":
        if data.source in FILES:
            return FILES[data.source](data.path, split)
        return _MADE[data.source](data, split)
    return StratifiedSource(open_whole(data), split, data.val_fraction, data.split_seed)


def open_whole(data: DataConfig) -> Source:
    """Opens a data set that is not divided into training and evaluation images.

    Raises:
        DataSetError: it is divided, or cannot be opened.
    """
    if data.source not in FILES:
        raise DataSetError(
            f"config.data.source={data.source!r} has a split of its own: "
            "config.data.split=stratified is for files of yours"
        )
    return FILES[data.source](data.path, "all")


class SyntheticSource:
    """Noise and arbitrary labels, for measuring speed: the same for the same index, always.

    Args:
        side: of the square images, pixels.
        length: how many examples.
        num_classes: labels go round, 0 to num_classes - 1.
    """

    def __init__(self, side: int, length: int, num_classes: int = 1000):
        self._side = side
        self._length = length
        self.num_classes = num_classes
        self.class_names = tuple(f"class {label}" for label in range(num_classes))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        noise = np.random.Generator(np.random.Philox(key=index)).bytes(self._side**2 * 3)
        image = np.frombuffer(noise, np.uint8).reshape(self._side, self._side, 3)
        return {"image": image, "label": index % self.num_classes}

    def name_of(self, index: int) -> str:
        """A made-up path."""
        return f"synthetic/{index}"

    def fingerprint(self) -> str:
        """Digest of the sizes."""
        sizes = f"synthetic {self._side} {self._length} {self.num_classes}"
        return hashlib.sha256(sizes.encode()).hexdigest()


def _open_synthetic(data: DataConfig, split: Split) -> Source:
    return SyntheticSource(data.image_size, 65_536 if split == "train" else 4_096)


def _open_elpv(data: DataConfig, split: Split) -> Source:
    folder = find_folder()
    if folder is None:
        raise DataSetError(
            "config.data.source='elpv' reads the photographs of the package elpv-dataset, which is "
            f"not installed: {PIP_COMMAND} (91 MB; CC-BY-NC-SA 4.0, so not for commercial use)"
        )
    return ElpvSource(folder, split)


# Those that lie in a folder.
FILES: dict[str, Callable[[str | None, Part], Source]] = {
    "array_record": open_array_record,
    "image_folder": open_image_folder,
    "parquet": open_parquet,
    "tar": open_tar,
}

_MADE: dict[str, Callable[[DataConfig, Split], Source]] = {
    "elpv": _open_elpv,
    "fashion_mnist": lambda data, split: FashionMnistSource(split),
    "synthetic": _open_synthetic,
}

SOURCES = (*FILES, *_MADE)  # the names of config.data.source
