"""Data sets of semantic segmentation in the layouts of their authors: ADE20K, VOC, Cityscapes.

The files are the user's. Names and colours of the classes are part of this package, except where a
file `classes.txt` beside the data names them; `vig_jax.data.formats.mask_folder` describes it.
"""

import dataclasses
from importlib import resources
from pathlib import Path

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Split
from vig_jax.data.formats.label_table import LabelTable, colours, parse_table
from vig_jax.data.formats.segmentation_folder import (
    Layout,
    SegmentationFolder,
    existing_folder,
    find_pairs,
    read_table,
)
from vig_jax.data.formats.shards import CLASSES_FILE, read_lines
from vig_jax.errors import DataSetError

_ADE20K = """
The expected layout is that of the scene parsing benchmark, {path}/

    images/training/  images/validation/  annotations/training/  annotations/validation/

or the folder above it, with ADEChallengeData2016 in it."""
_ADE20K_SPLITS: dict[Split, str] = {"train": "training", "eval": "validation"}
_ADE20K_LABELS = 150  # in the files; 0 means that a pixel has no class

_VOC = """
The expected layout is that of VOC2012, {path}/

    JPEGImages/  SegmentationClass/  ImageSets/Segmentation/train.txt and val.txt"""
_VOC_SPLITS: dict[Split, str] = {"train": "train", "eval": "val"}
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)

_CITYSCAPES = """
The expected layout is {path}/

    leftImg8bit/train/CITY/*_leftImg8bit.png  gtFine/train/CITY/*_gtFine_labelIds.png

and the same with val."""
# The classes that are evaluated, with their labels in the files and their colours.
_CITYSCAPES_CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_CITYSCAPES_LABELS = 34  # 0 to 33 in the files


def open_ade20k(data: DataConfig, split: Split) -> SegmentationFolder:
    """Opens a split of ADE20K's scene parsing benchmark (SceneParse150).

    The labels are 0, which is no class, and 1 to 150: `config.task.reduce_zero_label` must be true.

    Args:
        data: `path`.
        split: "train" (20,210 pairs in the original) or "eval" (2,000).

    Raises:
        DataSetError: the folder has another layout.
    """
    root = existing_folder(data.path, _ADE20K)
    if not (root / "images").is_dir() and (root / "ADEChallengeData2016").is_dir():
        root /= "ADEChallengeData2016"
    folder = _ADE20K_SPLITS[split]
    layout = Layout(f"images/{folder}", f"annotations/{folder}")
    if not (root / layout.images).is_dir() and next(root.glob("**/*_seg.png"), None):
        raise DataSetError(
            f"{root} is the full ADE20K, with thousands of classes in files *_seg.png: the "
            f"benchmark of 150 classes is ADEChallengeData2016. {_ADE20K.format(path=root)}"
        )
    table = read_table(root)
    if table is None:
        table = dataclasses.replace(ade20k_classes(), largest_label=_ADE20K_LABELS)
    return _opened(root, layout, table, _ADE20K)


def ade20k_classes() -> LabelTable:
    """Returns names and colours of the 150 classes of ADE20K's scene parsing benchmark."""
    return parse_table(_packaged_lines("ade20k"), CLASSES_FILE)


def open_voc(data: DataConfig, split: Split) -> SegmentationFolder:
    """Opens a split of PASCAL VOC's segmentation data: 20 kinds of objects, and background.

    Args:
        data: `path`, the folder of one year, e.g. VOCdevkit/VOC2012.
        split: "train" or "eval", the lists train.txt and val.txt.

    Raises:
        DataSetError: the folder has another layout.
    """
    root = existing_folder(data.path, _VOC)
    file = root / "ImageSets" / "Segmentation" / f"{_VOC_SPLITS[split]}.txt"
    if not file.is_file():
        raise DataSetError(f"{file} is missing. {_VOC.format(path=data.path)}")
    stems = [line.strip() for line in read_lines(file) if line.strip()]
    table = read_table(root) or LabelTable(VOC_NAMES, colours(len(VOC_NAMES)))
    return _opened(root, Layout("JPEGImages", "SegmentationClass"), table, _VOC, stems)


def open_cityscapes(data: DataConfig, split: Split) -> SegmentationFolder:
    """Opens a split of Cityscapes with fine annotations: 19 classes.

    Args:
        data: `path`, the folder above leftImg8bit and gtFine.
        split: "train" or "eval".

    Raises:
        DataSetError: the folder has another layout.
    """
    root = existing_folder(data.path, _CITYSCAPES)
    folder = {"train": "train", "eval": "val"}[split]
    layout = Layout(f"leftImg8bit/{folder}", f"gtFine/{folder}", "_leftImg8bit", "_gtFine_labelIds")
    labels, palette = zip(*_CITYSCAPES_CLASSES.values(), strict=True)
    ignored = tuple(sorted(set(range(_CITYSCAPES_LABELS)) - set(labels)))
    table = LabelTable(tuple(_CITYSCAPES_CLASSES), palette, labels, ignored)
    return _opened(root, layout, table, _CITYSCAPES)


def _opened(
    root: Path, layout: Layout, table: LabelTable, expected: str, stems: list[str] | None = None
) -> SegmentationFolder:
    for folder in (layout.images, layout.masks):
        if not (root / folder).is_dir():
            raise DataSetError(f"{root} has no folder {folder}. {expected.format(path=root)}")
    return SegmentationFolder(root, layout, find_pairs(root, layout, stems), table)


def _packaged_lines(name: str) -> list[str]:
    """Returns the lines of the classes that this package has; ORIGIN.md beside says from where."""
    file = resources.files("vig_jax.data.datasets").joinpath(name, CLASSES_FILE)
    return file.read_text(encoding="utf-8").splitlines()
