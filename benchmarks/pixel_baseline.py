"""Measures a baseline of semantic segmentation that knows single pixels only.

  python -m benchmarks.pixel_baseline --source fashion_scenes --image-size 64

Colours are put into 16 x 16 x 16 bins and positions into 4 x 4 cells. The prediction of a pixel is
the most frequent class of its bin and cell among the training pixels. There are no neighbours, no
shapes and no gradients: a model that learns must be well above this mIoU.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from vig_jax.config import parse, recipes
from vig_jax.data import Dataset, open_dataset
from vig_jax.metrics.mean_iou import summary

_COLOURS, _CELLS = 16, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pixel_baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", choices=("fashion_scenes", "nuclei"), default="fashion_scenes")
    parser.add_argument("--image-size", type=int, default=64, help="in pixels (default 64)")
    options = parser.parse_args(argv)
    data = parse(recipes.imagenet()).data
    data = dataclasses.replace(data, source=options.source, image_size=options.image_size)
    train, held_out = (open_dataset(data, split) for split in ("train", "eval"))
    classes = len(train.info.metadata["class_names"])
    counts = np.zeros((_COLOURS**3 * _CELLS**2, classes), np.int64)
    for bins, mask in _pixels(train):
        np.add.at(counts, (bins, mask), 1)
    likeliest = counts.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    for bins, mask in _pixels(held_out):
        np.add.at(confusion, (mask, likeliest[bins]), 1)
    values = "  ".join(f"{name} {value:.4f}" for name, value in summary(confusion).items())
    print(f"{options.source}, {len(held_out)} held-out images, single pixels only: {values}")
    return 0


def _pixels(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the bin and the class of every pixel of each image."""
    for index in range(len(dataset)):
        example = dataset[index]
        mask = example["mask"]
        height, width = mask.shape
        colour = example["image"].astype(int) * _COLOURS // 256
        bins = (colour[..., 0] * _COLOURS + colour[..., 1]) * _COLOURS + colour[..., 2]
        rows = np.arange(height)[:, None] * _CELLS // height
        columns = np.arange(width) * _CELLS // width
        yield ((bins * _CELLS + rows) * _CELLS + columns).ravel(), mask.ravel()


if __name__ == "__main__":
    sys.exit(main())
