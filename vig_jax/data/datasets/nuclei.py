"""Cell nuclei: tiles of one fluorescence microscopy image, with a mask of every nucleus.

The image (512 x 512 pixels, gray) and its hand-made masks come with the optional package
`stardist`, which is BSD-3-Clause. The package says that they are from the 2018 Data Science Bowl:
Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl",
Nature Methods 16, 2019. The package is only located, and never imported, because it needs
TensorFlow.

Training tiles are from the left half of the image and overlap. Evaluation tiles are from the right
half and do not overlap, so no pixel counts twice. A nucleus on the line between the halves is in
both, in parts. One image is enough to try a segmentation or a detection, but not to compare models.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from vig_jax.data.dataset import DatasetInfo, Example, GroundTruth, Split
from vig_jax.data.datasets.instances import ground_truth, instance_metadata, instances
from vig_jax.errors import DataSetError

PIP_COMMAND = "pip install --no-deps stardist"
CLASS_NAMES = ("background", "nucleus")
PALETTE = ((0, 0, 0), (136, 204, 238))
SMALLEST = 12  # pixels of an instance in a tile

_IMAGE, _MASKS = "img2d.tif", "mask2d.tif"


class NucleiDataset:
    """The tiles of one half of the image, as RGB arrays.

    `example["mask"]` is 0 for the background and 1 for nuclei. A nucleus of which a tile shows only
    a few pixels (`SMALLEST`) is in the mask, but not among the instances. All labels are 0.

    Args:
        folder: from `find_folder`.
        split: "train" or "eval".
        side: of the square tiles, pixels.

    Raises:
        DataSetError: the files are damaged, or a tile is wider than half of the image.
    """

    def __init__(self, folder: Path, split: Split, side: int):
        pixels, _ = _half(folder, split)
        height, width = pixels.shape
        if side > min(height, width):
            raise DataSetError(
                f"config.data.image_size={side} is larger than half of the nuclei's image, "
                f"{width} x {height} pixels: set {min(height, width)} or less"
            )
        step = side // 2 if split == "train" else side
        self._folder, self._split, self._side = folder, split, side
        self._corners = [
            (top, left)
            for top in range(0, height - side + 1, max(1, step))
            for left in range(0, width - side + 1, max(1, step))
        ]

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """Name, fingerprint, `class_names` and `palette`, the colors of the classes."""
        digest = hashlib.sha256(f"nuclei {self._split} {self._side}".encode())
        pixels, objects = _half(self._folder, self._split)
        digest.update(pixels.tobytes())
        digest.update(objects.astype("<i4").tobytes())
        metadata = {"class_names": CLASS_NAMES, "palette": [list(color) for color in PALETTE]}
        metadata |= instance_metadata(CLASS_NAMES[1:], PALETTE[1:], range(1, len(CLASS_NAMES)))
        return DatasetInfo(f"nuclei {self._split}", digest.hexdigest(), metadata)

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        top, left = self._corners[index]
        pixels, objects = (
            whole[top : top + self._side, left : left + self._side]
            for whole in _half(self._folder, self._split)
        )
        numbers, areas = np.unique(objects, return_counts=True)
        numbers = numbers[(numbers > 0) & (areas >= SMALLEST)]
        return {
            "image": np.repeat(pixels[:, :, None], 3, axis=2),  # gray as RGB
            "mask": (objects > 0).astype(np.uint8),
            "size": (self._side, self._side),
            "image_id": index,
            **instances(objects, numbers, np.zeros(len(numbers), np.int32)),
        }

    def name_of(self, index: int) -> str:
        """Returns the file and the tile's top left corner in its half: "img2d.tif/eval/0,64"."""
        top, left = self._corners[index]
        return f"{_IMAGE}/{self._split}/{top},{left}"

    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every tile, pixels."""
        return np.full((len(self), 2), self._side, np.int32)

    def ground_truth(self, index: int) -> GroundTruth:
        """Returns the instances of example `index`."""
        return ground_truth(self[index])


def find_folder() -> Path | None:
    """Returns the installed package's folder of images, or None if it is not installed."""
    spec = importlib.util.find_spec("stardist")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "data" / "images"
    return folder if (folder / _IMAGE).is_file() else None


@functools.cache
def _half(folder: Path, split: Split) -> tuple[UInt8[np.ndarray, "h w"], np.ndarray]:
    """Returns the pixels and the numbers of the nuclei (int32, 0: background) of one half.

    Raises:
        DataSetError: a file cannot be read, or the two do not belong together.
    """
    arrays = []
    for name in (_IMAGE, _MASKS):
        try:
            with Image.open(folder / name) as file:
                arrays.append(np.asarray(file).astype(np.int32))
        except OSError as error:
            raise DataSetError(
                f"{folder / name} cannot be read ({error}): reinstall it: {PIP_COMMAND}"
            ) from error
    pixels, objects = arrays
    # The 16-bit file holds 8-bit values.
    if pixels.ndim != 2 or pixels.shape != objects.shape or not 0 <= pixels.max() < 256:
        raise DataSetError(
            f"{folder / _IMAGE} ({pixels.shape}, up to {pixels.max()}) and {_MASKS} "
            f"({objects.shape}) must be gray, of the same size and below 256: reinstall them: "
            f"{PIP_COMMAND}"
        )
    middle = pixels.shape[1] // 2
    half = np.s_[:, :middle] if split == "train" else np.s_[:, middle:]
    return pixels[half].astype(np.uint8), np.ascontiguousarray(objects[half])
