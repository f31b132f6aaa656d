"""Boxes of objects in PASCAL VOC's format: one XML file for each image.

    PATH/JPEGImages/*.jpg  PATH/Annotations/*.xml  PATH/ImageSets/Main/train.txt and val.txt

The classes are VOC's twenty, or those that PATH/classes.txt names, one per line. A box spans its
first to its last pixel, which the files count from 1. Objects that are marked as difficult are left
out of training, and in evaluation detections of them do not count, as with COCO's crowds.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Split
from vig_jax.data.datasets.scenes import VOC_NAMES
from vig_jax.data.formats.coco import CocoDataset
from vig_jax.data.formats.coco_index import CocoIndex, arrays_of
from vig_jax.data.formats.segmentation_folder import existing_folder, read_table
from vig_jax.data.formats.shards import read_lines
from vig_jax.errors import DataSetError
from vig_jax.files import read_regular_file
from vig_jax.text import printable

_LISTS: dict[Split, str] = {"train": "train", "eval": "val"}
_LARGEST_XML = 2**22  # bytes
_LAYOUT = """
The expected layout is that of VOC2012, {path}/

    JPEGImages/  Annotations/  ImageSets/Main/train.txt and val.txt"""


def open_voc_detection(data: DataConfig, split: Split) -> CocoDataset:
    """Opens a split of boxes in PASCAL VOC's format.

    Args:
        data: `path`, the folder of one year, e.g. VOCdevkit/VOC2012.
        split: "train" or "eval", the lists train.txt and val.txt.

    Raises:
        DataSetError: a file is missing or has another format.
    """
    root = existing_folder(data.path, _LAYOUT)
    file = root / "ImageSets" / "Main" / f"{_LISTS[split]}.txt"
    if not file.is_file():
        raise DataSetError(f"{file} is missing. {_LAYOUT.format(path=data.path)}")
    stems = [line.split()[0] for line in read_lines(file) if line.strip()]
    table = read_table(root)
    names = table.class_names if table else VOC_NAMES[1:]
    digest = hashlib.sha256("\0".join(names).encode())
    arrays = arrays_of(file, _items(root / "Annotations", stems, names, digest))
    index = CocoIndex(None, arrays, digest.hexdigest())
    dataset = CocoDataset(file, root / "JPEGImages", index, split)
    dataset.check()
    return dataset


def _items(
    folder: Path, stems: Sequence[str], names: Sequence[str], digest: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the content of XML files as elements of COCO's format, and hashes the files."""
    for label, name in enumerate(names):
        yield "categories", {"id": label + 1, "name": name}
    labels = {name: label + 1 for label, name in enumerate(names)}
    number = 0
    for image, stem in enumerate(stems):
        file = folder / f"{stem}.xml"
        try:
            content = read_regular_file(file, _LARGEST_XML)
            root = ElementTree.fromstring(content)
            width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise DataSetError(
                f"{printable(str(file))} is no annotation of PASCAL VOC with the size of the image "
                f"({error}): correct it, or remove its line from the list"
            ) from error
        digest.update(content)
        name = f"{stem}.jpg"
        yield "images", {"id": image, "width": width, "height": height, "file_name": name}
        for item in root.iter("object"):
            number += 1
            yield (
                "annotations",
                {
                    "id": number,
                    "image_id": image,
                    "category_id": labels.get(item.findtext("name", "").strip(), -1),
                    "bbox": _box(item),
                    "iscrowd": item.findtext("difficult", "0").strip() == "1",
                },
            )


def _box(item: ElementTree.Element) -> list[float] | None:
    """Returns left, top, width and height in pixels; None without four numbers."""
    try:
        left, top, right, bottom = (
            float(item.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return None
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
