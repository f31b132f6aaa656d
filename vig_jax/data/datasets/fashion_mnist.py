"""Fashion-MNIST t10k, part of the package: 8,000 training and 2,000 evaluation images.

Origin, licence and the rule of the split are in `fashion_mnist/ORIGIN.md` and `LICENSE`.
"""

import functools
import gzip
import hashlib
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from vig_jax.data.dataset import ClassificationBase, Example
from vig_jax.data.preprocess.decode import decode

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLIT_SEED = 2017
HELD_OUT_PER_CLASS = 200

_IMAGES = "t10k-images-idx3-ubyte.gz"
_LABELS = "t10k-labels-idx1-ubyte.gz"


class FashionMnistDataset(ClassificationBase):
    """A split of the embedded data set, as RGB arrays.

    `name_of(i)` counts in the file of 10,000 images in either split, e.g. "fashion_mnist/test/7".
    """

    def __init__(self, split: Literal["train", "eval"]):
        super().__init__(f"fashion_mnist {split}", CLASS_NAMES)
        images, labels = read_files()
        train, held_out = split_positions(labels)
        self._split = split
        self._positions = train if split == "train" else held_out
        self._images = images[self._positions]
        self._labels = labels[self._positions]

    def __getitem__(self, index: int) -> Example:
        image = np.repeat(self._images[index][:, :, None], 3, axis=2)  # gray as RGB
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the position in the original test file, as a path."""
        return f"fashion_mnist/test/{self._positions[index]}"

    def known_sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns 28 x 28 for every image."""
        return np.full((len(self), 2), 28, np.int32)

    def digest(self) -> str:
        """Hashes the pixels, labels and positions of this split."""
        digest = hashlib.sha256(f"fashion_mnist {self._split}".encode())
        for array in (self._images, self._labels.astype("<i4"), self._positions.astype("<i8")):
            digest.update(array.tobytes())
        return digest.hexdigest()


@functools.cache
def read_files() -> tuple[UInt8[np.ndarray, "n 28 28"], Int32[np.ndarray, "n"]]:
    """Returns the 10,000 gray images and their labels, in the order of the files."""
    folder = resources.files("vig_jax.data.datasets").joinpath("fashion_mnist")
    pixels = gzip.decompress(folder.joinpath(_IMAGES).read_bytes())
    labels = gzip.decompress(folder.joinpath(_LABELS).read_bytes())
    # The IDX format: a magic number and the dimensions, each four bytes, then the data.
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)


def split_positions(
    labels: Int32[np.ndarray, "n"],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the training and of the held-out images, stratified by class.

    They are always the same.

    Args:
        labels: class of every image.

    Returns:
        Two ascending int64 arrays that partition `range(n)`.
    """
    rng = np.random.RandomState(SPLIT_SEED)  # a numpy stream that is frozen (NEP 19)
    held_out = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == label))[:HELD_OUT_PER_CLASS]
            for label in range(len(CLASS_NAMES))
        ]
    )
    is_held_out = np.zeros(len(labels), bool)
    is_held_out[held_out] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def folder_name(class_name: str) -> str:
    """Returns a class name as the name of a folder."""
    return class_name.replace("/", "-")


def write_images(directory: Path, split: Literal["train", "eval"], per_class: int | None) -> int:
    """Writes a split as PNG files, one folder per class, and returns their number.

    Args:
        directory: made if absent; existing files are overwritten.
        split: "train" or "eval".
        per_class: write only the first images of each class; None: all.
    """
    dataset = FashionMnistDataset(split)
    written = dict.fromkeys(range(dataset.num_classes), 0)
    for index in range(len(dataset)):
        example = dataset[index]
        label = example["label"]
        if per_class is not None and written[label] >= per_class:
            continue
        number = dataset.name_of(index).rpartition("/")[2]
        file = directory / folder_name(CLASS_NAMES[label]) / f"{int(number):05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        decode(example["image"]).save(file)
        written[label] += 1
    return sum(written.values())
