"""Boxes and masks in COCO's format: one JSON file of annotations for each split, and images.

    PATH/annotations/instances_train2017.json    PATH/train2017/*.jpg
    PATH/annotations/instances_val2017.json      PATH/val2017/*.jpg

The splits may also be called train and val, and the folders of images may be in PATH/images. Or
PATH is a JSON file, whose images are in its folder or in `images` beside it; it is divided with
config.data.split="random", which holds out val_fraction of the images, drawn with split_seed.

Training leaves out images that are shorter than 32 pixels or have no usable box, as mmdetection
does. Boxes are usable if `FAULTS` says nothing against them and they are no crowd. Evaluation has
all images and all annotations.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from vig_jax.config import DataConfig
from vig_jax.data.dataset import DatasetInfo, Example, GroundTruth, Split
from vig_jax.data.formats.coco_index import FAULTS, MALFORMED, USED, CocoIndex, open_index
from vig_jax.data.formats.label_table import colours
from vig_jax.data.formats.mask_folder import random_positions
from vig_jax.errors import DataSetError, UnreadableRecordError
from vig_jax.files import read_regular_file
from vig_jax.ops import rle
from vig_jax.text import printable

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train2017", "train"),
    "eval": ("val2017", "val"),
}
_SHORTEST = 32  # pixels, of a training image
_CHECKED_FILES = 32
_CROWD = "is a crowd"
_LAYOUT = """
The expected layout is

    {path}/
      annotations/  instances_train2017.json  instances_val2017.json
      train2017/    000000000009.jpg  ...
      val2017/      ...

The splits may be called train and val, and the folders of images may be in {path}/images. For one
annotation file: --config.data.path=FILE.json --config.data.split=random
--config.data.val_fraction=0.1."""


class CocoDataset:
    """A split of images with boxes and masks; see `vig_jax.data.dataset.DetectionDataset`.

    Args:
        file: of annotations, for messages.
        images: the folder of images.
        index: the content of the file.
        split: "train" or "eval".
        chosen: numbers of the images in the file; None: all.
    """

    def __init__(
        self,
        file: Path,
        images: Path,
        index: CocoIndex,
        split: Split,
        chosen: Int64[np.ndarray, "n"] | None = None,
    ):
        self._file = file
        self._images = os.fspath(images.absolute())
        self._index = index
        self._split: Split = split
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        position = self._position(index)
        name = self._index.name(position)
        if name.startswith("/") or ".." in name.split("/"):
            raise UnreadableRecordError(f"file_name {printable(name)} is outside of the folder")
        width, height = self._index["sizes"][position].tolist()
        found = self._index.annotations(position)
        usable = _usable(found.faults, found.crowd)
        boxes = found.boxes[usable]
        example: dict[str, Any] = {
            "image": read_regular_file(f"{self._images}/{name}"),
            "size": (width, height),
            "image_id": self._index["image_ids"][position].item(),
            "boxes": _corners(boxes).astype(np.float32),
            "labels": np.array(found.labels[usable]),
        }
        if self._index.has_masks:
            rows = found.rows[usable].tolist()
            masks = (self._index.segmentation(row, (width, height)) for row in rows)
            example["segmentations"] = tuple(masks)
        return example

    def ground_truth(self, index: int) -> GroundTruth:
        """Returns all objects of an image, crowds and small ones included."""
        position = self._position(index)
        width, height = self._index["sizes"][position].tolist()
        found = self._index.annotations(position)
        known = (found.labels >= 0) & (found.faults != MALFORMED)
        masks = None
        if self._index.has_masks:
            rows = found.rows[known].tolist()
            masks = tuple(self._mask(row, width, height) for row in rows)
        return GroundTruth(
            image_id=self._index["image_ids"][position].item(),
            size=(width, height),
            ids=np.array(found.ids[known]),
            boxes=_corners(found.boxes[known]),
            labels=np.array(found.labels[known]),
            areas=np.array(found.areas[known]),
            crowd=np.array(found.crowd[known]),
            masks=masks,
        )

    def name_of(self, index: int) -> str:
        """Returns the folder and the name of the image, e.g. "val2017/000000000139.jpg"."""
        folder = self._images.rpartition("/")[2]
        return printable(f"{folder}/{self._index.name(self._position(index))}")

    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every image, as the annotations say, pixels."""
        return np.array(self._index["sizes"][self._positions])

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """Name, fingerprint, and the classes: `class_names`, `palette` and `instance_metadata`."""
        digest = hashlib.sha256(f"coco {self._split} {self._index.digest}".encode())
        digest.update(self._positions.astype("<i8").tobytes())
        categories = self._index.categories
        names = tuple(name for _, name in categories)
        palette = [list(color) for color in colours(len(names) + 1)[1:]]  # the first is black
        metadata = {
            "class_names": names,
            "palette": palette,
            "instance_names": names,
            "instance_palette": palette,
            "category_ids": [number for number, _ in categories],
            "has_masks": self._index.has_masks,
        }
        return DatasetInfo(printable(str(self._file)), digest.hexdigest(), metadata)

    def faults(self, most_boxes: int | None = None) -> dict[str, list[str]]:
        """Lists what is wrong with the annotations and the images of the file.

        Args:
            most_boxes: of a training image; see `config.task.max_boxes`. None: any number.

        Returns:
            For each problem the annotations that have it, such as "image 9, annotation 1038".
        """
        index, every = self._index, self._index.annotations()
        of_image = index.image_of_each
        chosen = np.zeros(len(index["image_ids"]), bool)
        chosen[self._all_positions] = True
        mine = chosen[of_image]

        def names(selected: np.ndarray) -> list[str]:
            pairs = zip(of_image[selected], every.ids[selected], strict=True)
            return [f"image {index['image_ids'][i]}, annotation {a}" for i, a in pairs]

        found = {text: names(mine & (every.faults == code)) for code, text in enumerate(FAULTS)}
        del found[""]
        found[_CROWD] = names(mine & every.crowd)
        usable = _usable(every.faults, every.crowd)
        counts = np.bincount(of_image[usable], minlength=len(chosen))
        short = index["sizes"].min(axis=1) < _SHORTEST
        for text, images in (
            ("image without a usable box", counts == 0),
            (f"image shorter than {_SHORTEST} pixels", short),
            (f"image with more than {most_boxes} usable boxes", counts > (most_boxes or np.inf)),
        ):
            found[text] = [f"image {i}" for i in index["image_ids"][chosen & images]]
        if orphans := int(index["orphans"][0]):
            found["annotation of an image that is not listed"] = [f"{orphans} of the file"]
        return {text: entries for text, entries in found.items() if entries}

    def counts(self) -> tuple[list[int], list[int]]:
        """Returns for each class the number of usable boxes, and of images that have one."""
        every = self._index.annotations()
        of_image = np.repeat(
            np.arange(len(self._index["image_ids"])), np.diff(self._index["offsets"])
        )
        kept = np.zeros(len(self._index["image_ids"]), bool)
        kept[self._positions] = True
        usable = _usable(every.faults, every.crowd) & kept[of_image]
        classes = len(self._index.categories)
        pairs = np.unique(of_image[usable] * classes + every.labels[usable])
        boxes = np.bincount(every.labels[usable], minlength=classes)
        return boxes.tolist(), np.bincount(pairs % classes, minlength=classes).tolist()

    def check(self) -> None:
        """Looks for some files, spread evenly.

        Raises:
            DataSetError: there are no images, or none of the files exists.
        """
        if not len(self):
            found = "; ".join(f"{text}: {len(names):,}" for text, names in self.faults().items())
            raise DataSetError(
                f"{printable(str(self._file))} has no images that can be used for training "
                f"({found or 'no image'}): correct the annotations"
            )
        places = np.unique(np.linspace(0, len(self) - 1, _CHECKED_FILES).astype(int)).tolist()
        names = [self._index.name(self._position(index)) for index in places]
        if not any(Path(self._images, name).exists() for name in names):
            raise DataSetError(
                f"none of {len(names)} images of {printable(str(self._file))} is in "
                f"{printable(self._images)}, for example {printable(names[0])}: copy them there"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name not in ("_positions", "info")}

    @property
    def _all_positions(self) -> Int64[np.ndarray, "n"]:
        if self._chosen is not None:
            return self._chosen
        return np.arange(len(self._index["image_ids"]))

    @functools.cached_property
    def _positions(self) -> Int64[np.ndarray, "n"]:
        """Numbers of the images in the file."""
        if self._split == "eval":
            return self._all_positions
        every, offsets = self._index.annotations(), self._index["offsets"]
        usable = np.concatenate([[0], np.cumsum(_usable(every.faults, every.crowd))])
        filled = usable[offsets[1:]] > usable[offsets[:-1]]
        kept = filled & (self._index["sizes"].min(axis=1) >= _SHORTEST)
        return self._all_positions[kept[self._all_positions]]

    def _position(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self._positions[index])

    def _mask(self, row: int, width: int, height: int) -> rle.Rle:
        """Returns an object's mask; empty without a valid one."""
        mask = self._index.segmentation(row, (width, height))
        if isinstance(mask, rle.Rle):
            return mask
        if not mask:
            return rle.encode(np.zeros((height, width), bool))
        return rle.from_coco([polygon.ravel().tolist() for polygon in mask], height, width)


def _usable(faults: np.ndarray, crowd: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return ((faults == 0) | (faults == USED)) & ~crowd


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Returns left, top, right, bottom of left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def open_coco(data: DataConfig, split: Split) -> CocoDataset:
    """Opens a split of a data set in COCO's format.

    Args:
        data: `path`, a folder or a JSON file; for a file `split`, `val_fraction` and `split_seed`.
        split: "train" or "eval".

    Raises:
        DataSetError: a file is missing or not in COCO's format.
    """
    if data.path is None:
        raise DataSetError(f"config.data.path is not set. {_LAYOUT.format(path='PATH')}")
    root = Path(data.path).expanduser()
    if root.is_file():
        dataset = _open_file(root, data, split)
    else:
        if data.split == "random":
            raise DataSetError(
                f"config.data.split=random divides one annotation file, and {root} is a folder: "
                "leave it at 'given', or set config.data.path to the JSON file"
            )
        file, images = _find(root, split, data.path)
        dataset = CocoDataset(file, images, open_index(file), split)
    dataset.check()
    return dataset


def _open_file(file: Path, data: DataConfig, split: Split) -> CocoDataset:
    """Opens one annotation file that is divided here."""
    if data.split != "random":
        raise DataSetError(
            f"{file} is one annotation file without splits: set config.data.split=random and "
            "config.data.val_fraction"
        )
    beside = file.parent / "images"
    index = open_index(file)
    train, held_out = random_positions(len(index["image_ids"]), data.val_fraction, data.split_seed)
    chosen = np.array(train if split == "train" else held_out, np.int64)
    return CocoDataset(file, beside if beside.is_dir() else file.parent, index, split, chosen)


def _find(root: Path, split: Split, path: str) -> tuple[Path, Path]:
    """Returns the annotation file and the folder of images of a split."""
    for name in _SPLITS[split]:
        file = root / "annotations" / f"instances_{name}.json"
        if not file.is_file():
            continue
        for folder in (root / name, root / "images" / name):
            if folder.is_dir():
                return file, folder
        raise DataSetError(
            f"{file} is there, but no folder {root / name}.{_LAYOUT.format(path=path)}"
        )
    raise DataSetError(
        f"{root / 'annotations'} has no file "
        f"{' or '.join(f'instances_{name}.json' for name in _SPLITS[split])}."
        f"{_LAYOUT.format(path=path)}"
    )
