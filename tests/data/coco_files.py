"""A small data set in COCO's format, with a fault of every kind."""

import json

import numpy as np

from tests.data.photographs import encoded, photo
from vig_jax.ops import rle

MASK = np.zeros((40, 60), bool)
MASK[10:20, 5:30] = True
SQUARE = [5.13, 10, 30, 10, 30, 20.5, 5, 20.5]


def annotation(number, image=1, **changes):
    return {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "bbox": [5, 10, 25, 10.5],
        "area": 262.5,
        "iscrowd": 0,
        "segmentation": [SQUARE],
    } | changes


def compressed(mask):
    return {"size": list(mask.shape), "counts": rle.to_string(rle.encode(mask))}


SIZES = {9: (60, 40), 1: (60, 40), 4: (40, 60), 3: (30, 50), 8: (60, 40)}
FAULTY = (
    annotation(20, bbox=[1, 2, 3]),
    annotation(21, category_id=12),
    annotation(22, area=0),
    annotation(23, bbox=[3, 4, 0.5, 9]),
    annotation(24, bbox=[60, 4, 9, 9]),
    annotation(25, segmentation=[]),
    annotation(26, segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, "x", 4, 5, 6]]),
    annotation(27, segmentation=compressed(MASK.T)),
    annotation(28, segmentation={"size": [40, 60], "counts": [7]}),
)
GOOD = (
    annotation(10, 9),
    annotation(11, segmentation=[[0, 0, 9, 0], SQUARE]),
    annotation(12, category_id=1, segmentation=compressed(MASK)),
    annotation(13, iscrowd=1, segmentation={"size": [40, 60], "counts": [0, 400, 2000]}),
    annotation(14, 4, bbox=[-3, 5, 10, 70]),
    annotation(15, 3),
    annotation(16, 8, iscrowd=1),
)


def content(annotations=GOOD + FAULTY):
    images = [
        {"id": number, "width": w, "height": h, "file_name": f"{number:04}.jpg"}
        for number, (w, h) in SIZES.items()
    ]
    categories = [{"id": 7, "name": "seal"}, {"id": 1, "name": "crab"}]
    return {
        "info": {"year": 2017, "categories": [1]},
        "annotations": [*annotations, annotation(99, image=1000)],
        "images": images,
        "categories": categories,
    }


def write(root):
    """Writes the same annotations and images for both splits."""
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        for number, (width, height) in SIZES.items():
            (root / split / f"{number:04}.jpg").write_bytes(encoded(photo(width, height, number)))
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content()))
    return root
