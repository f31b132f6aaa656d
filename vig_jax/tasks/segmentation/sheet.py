"""A contact sheet of a data set: photographs under the colours of their masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from vig_jax.data.formats.segmentation_folder import SegmentationFolder
from vig_jax.data.inspection import spread
from vig_jax.data.preprocess.decode import decode
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.data.preprocess.masks import check_same_size, decode_mask, label_lookup
from vig_jax.errors import UndecodableImageError
from vig_jax.tasks.segmentation.drawing import OTHER, overlay
from vig_jax.tasks.segmentation.thumbnails import SIDE, thumbnail_of_image, thumbnail_of_labels

_COLUMNS, _ROWS, _MARGIN = 6, 6, 6  # images, images, pixels


def save_mask_sheet(
    dataset: SegmentationFolder,
    reduce_zero_label: bool,
    path: Path,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Writes up to 36 photographs, spread evenly over a split, with their masks, as PNG.

    The place of a pair that cannot be decoded stays empty.

    Args:
        dataset: the split.
        reduce_zero_label: label 0 is no class, and label k is class k - 1.
        path: the folder is made if it is missing.
        max_pixels: width times height of an image; larger ones are not decoded.
    """
    metadata = dataset.info.metadata
    lookup = label_lookup(metadata, reduce_zero_label)
    picks = spread(len(dataset), _COLUMNS * _ROWS)
    columns, cell = min(_COLUMNS, len(picks)), SIDE + _MARGIN
    shape = -(-len(picks) // columns) * cell + _MARGIN, columns * cell + _MARGIN, 3
    sheet = np.full(shape, OTHER, np.uint8)
    for number, index in enumerate(picks):
        try:
            example = dataset[index]
            image = np.asarray(decode(example["image"], max_pixels))
            labels = decode_mask(example["mask"], max_pixels)
            check_same_size(image.shape[1::-1], labels)
        except (UndecodableImageError, OSError):
            continue
        small = thumbnail_of_image(image, labels.shape)
        drawn = overlay(small, lookup[thumbnail_of_labels(labels)], metadata["palette"])
        top, left = (_MARGIN + place * cell for place in divmod(number, columns))
        sheet[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
