"""Images and their masks in two folders: the data set that all sources of masks share."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from vig_jax.data.dataset import DatasetInfo, Example
from vig_jax.data.formats.image_folder import find_image_files
from vig_jax.data.formats.label_table import LabelTable, parse_table
from vig_jax.data.formats.shards import CLASSES_FILE, read_lines
from vig_jax.data.preprocess.decode import read_header, read_size
from vig_jax.data.preprocess.masks import IGNORED, check_same_size, decode_mask
from vig_jax.errors import DataSetError, UndecodableImageError, UnusableMaskError
from vig_jax.files import read_regular_file
from vig_jax.text import preview_names, printable

logger = logging.getLogger(__name__)

CHECKED_PAIRS = 32  # of a split, when it is opened
_SIZED_FILES = 1000  # of a split, in its fingerprint


@dataclasses.dataclass(frozen=True)
class Layout:
    """The folders and names of the files of a split.

    Args:
        images: folder below the root.
        masks: likewise.
        image_suffix: of an image's name, before its extension.
        mask_suffix: what the name of its mask has in that place. The extension is `.png`.
    """

    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""

    def stem(self, image: str) -> str | None:
        """Returns what the names of image and mask share; None if the suffix is missing."""
        stem = os.path.splitext(image)[0]  # noqa: PTH122
        return stem.removesuffix(self.image_suffix) if stem.endswith(self.image_suffix) else None

    def mask_of(self, image: str) -> str:
        """Returns the path of the mask below the folder of masks."""
        return f"{self.stem(image)}{self.mask_suffix}.png"


class SegmentationFolder:
    """Images and their masks. An example has `image` and `mask`, contents of files.

    After `sizes` was called, also by a copy, an example has the `size` that was found.

    Args:
        root: a folder.
        layout: where the files are in it.
        images: paths below the folder of images.
        table: the classes.
        settings: how the images were chosen from the folder, for the fingerprint.
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        images: Sequence[str],
        table: LabelTable,
        settings: str = "",
    ):
        self._root = os.fspath(root.absolute())
        self._layout = layout
        self._images = tuple(images)
        self._table = table
        self._settings = settings
        self._sizes: Int32[np.ndarray, "n 2"] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, mask = (read_regular_file(path) for path in self._paths(index))
        example: dict[str, object] = {"image": image, "mask": mask}
        if self._sizes is not None:
            width, height = self._sizes[index].tolist()
            example["size"] = (width, height)
        return example

    def name_of(self, index: int) -> str:
        """Returns the path of the image below the root, e.g. "images/train/001.jpg"."""
        return printable(f"{self._layout.images}/{self._images[index]}")

    def mask_name_of(self, index: int) -> str:
        """Returns the path of the mask below the root."""
        return printable(f"{self._layout.masks}/{self._layout.mask_of(self._images[index])}")

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """Name, fingerprint, and the table of labels as metadata; see `label_lookup`."""
        name = printable(f"{self._root}/{self._layout.images}")
        return DatasetInfo(name, self._digest(), self._table.metadata())

    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every image, from the headers; 1 and 1 without a header."""
        if self._sizes is None:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                found = pool.map(lambda index: read_size(self._paths(index)[0]), range(len(self)))
                sizes = [size or (1, 1) for size in found]  # a bad image, whatever its bucket
            self._sizes = np.array(sizes, np.int32).reshape(-1, 2)
        return self._sizes

    def check(self) -> None:
        """Looks at some masks, drawn at random but always the same.

        Files that cannot be decoded are left to the loader, which counts them.

        Raises:
            DataSetError: a mask differs in size from its image, has colours or impossible labels.
        """
        positions = np.random.RandomState(0).permutation(len(self))[:CHECKED_PAIRS].tolist()
        possible = self._table.possible()
        faults = []
        for index in positions:
            try:
                self._check_pair(index, possible)
            except UnusableMaskError as error:
                faults.append(f"{self.mask_name_of(index)} of {self.name_of(index)}: {error}")
            except (UndecodableImageError, OSError):
                continue
        if faults:
            raise DataSetError(
                f"{len(faults)} of {len(positions)} masks that were looked at cannot be used. "
                f"{'; '.join(faults[:3])}. Correct such masks or remove them with their images"
                f"{'' if len(faults) <= 3 else f' (and {len(faults) - 3} more)'}; "
                "`vig data inspect` looks at all"
            )

    def _check_pair(self, index: int, possible: frozenset[int]) -> None:
        example = self[index]
        header = read_header(example["image"])
        labels = decode_mask(example["mask"])
        check_same_size((header.width, header.height), labels)
        wrong = [label for label in np.unique(labels).tolist() if label not in possible]
        if wrong:
            raise UnusableMaskError(
                f"the mask has the label {preview_names(wrong)}, but there are "
                f"{len(self._table.class_names)} classes; label {IGNORED} marks pixels without one"
            )

    def _paths(self, index: int) -> tuple[str, str]:
        image = self._images[index]
        return (
            f"{self._root}/{self._layout.images}/{image}",
            f"{self._root}/{self._layout.masks}/{self._layout.mask_of(image)}",
        )

    def _digest(self) -> str:
        """Hashes all names, the table and up to a thousand pairs of file sizes."""
        parts = ("segmentation_folder", repr(self._layout), self._settings, repr(self._table))
        digest = hashlib.sha256("\0".join((*parts, *self._images)).encode(errors="surrogateescape"))
        for index in np.unique(np.linspace(0, len(self) - 1, _SIZED_FILES).astype(int)).tolist():
            for path in self._paths(index):
                try:
                    size = Path(path).stat().st_size
                except OSError:  # reading it makes a bad image
                    size = 2**64 - 1
                digest.update(size.to_bytes(8, "little"))
        return digest.hexdigest()


def find_pairs(root: Path, layout: Layout, chosen: Sequence[str] | None = None) -> list[str]:
    """Returns the images that have a mask, sorted; logs the names of files without the other.

    Args:
        root: a folder.
        layout: where the files are in it.
        chosen: stems of the images to use; None: all.

    Returns:
        Paths below the folder of images, at least one.

    Raises:
        DataSetError: a folder is missing, fewer than half of the images have a mask, or two images
            share one.
    """
    for folder in (layout.images, layout.masks):
        if not (root / folder).is_dir():
            raise DataSetError(f"{root} has no folder {folder}")
    by_stem: dict[str, str] = {}
    for image in find_image_files(root / layout.images):
        if (stem := layout.stem(image)) is None:
            continue
        if stem in by_stem:
            raise DataSetError(
                f"{root / layout.images} has {by_stem[stem]} and {image}, which would have the "
                "same mask: remove one or give it another name"
            )
        by_stem[stem] = image
    suffix = f"{layout.mask_suffix}.png"
    masks = {
        mask.removesuffix(suffix)
        for mask in find_image_files(root / layout.masks)
        if mask.endswith(suffix)
    }
    if chosen is not None:
        listed = set(chosen)
        _report(root / layout.images, "are listed, but missing", sorted(listed - by_stem.keys()))
        by_stem = {stem: image for stem, image in by_stem.items() if stem in listed}
        masks &= listed
    paired = sorted(by_stem[stem] for stem in masks & by_stem.keys())
    alone = sorted(by_stem[stem] for stem in by_stem.keys() - masks)
    if not paired or len(alone) > len(paired):
        raise DataSetError(
            f"{len(alone)} of {len(by_stem)} images in {root / layout.images} have no mask in "
            f"{root / layout.masks}: {preview_names(alone) or 'there are none'}. The mask of an "
            f"image has its name, but ends in {suffix}"
        )
    _report(root / layout.images, "have no mask and are left out", alone)
    _report(root / layout.masks, "have no image and are left out", sorted(masks - by_stem.keys()))
    return paired


def _report(folder: Path, problem: str, names: Sequence[str]) -> None:
    if names:
        logger.warning(
            "%s: %d files %s: %s", printable(str(folder)), len(names), problem, preview_names(names)
        )


def existing_folder(path: str | None, layout: str) -> Path:
    """Returns `config.data.path` as a folder.

    Args:
        path: the setting.
        layout: description of the files with a place for `path`, for messages.

    Raises:
        DataSetError: it is not set, or not a folder.
    """
    if path is None:
        raise DataSetError(f"config.data.path is not set. {layout.format(path='PATH')}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataSetError(f"config.data.path={path} is not a folder. {layout.format(path=path)}")
    return root


def read_table(root: Path) -> LabelTable | None:
    """Returns the classes that PATH/classes.txt names, or None without the file."""
    file = root / CLASSES_FILE
    return parse_table(read_lines(file), file) if file.is_file() else None
