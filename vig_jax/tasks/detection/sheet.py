"""A contact sheet of a data set: photographs with their boxes and masks."""

from pathlib import Path

import numpy as np

from vig_jax.data.dataset import DetectionDataset
from vig_jax.data.inspection import spread
from vig_jax.data.preprocess.decode import decode
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.errors import UndecodableImageError
from vig_jax.figures import new_figure, save_figure
from vig_jax.tasks.detection.drawing import draw_objects, true_objects
from vig_jax.tasks.segmentation.thumbnails import thumbnail_of_image

_COLUMNS, _ROWS, _INCHES = 5, 5, 2.6


def save_box_sheet(dataset: DetectionDataset, path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Writes up to 25 photographs, spread evenly over a split, with their objects, as PNG.

    The place of an image that cannot be decoded stays empty. Crowds are left out.

    Args:
        dataset: the split.
        path: the folder is made if it is missing.
        max_pixels: width times height of an image; larger ones are not decoded.
    """
    metadata = dataset.info.metadata
    picks = spread(len(dataset), _COLUMNS * _ROWS)
    columns = min(_COLUMNS, len(picks))
    rows = -(-len(picks) // columns)
    figure = new_figure(columns * _INCHES, rows * _INCHES)
    for axes, index in zip(figure.subplots(rows, columns, squeeze=False).flat, picks, strict=False):
        axes.set_axis_off()
        try:
            image = np.asarray(decode(dataset[index]["image"], max_pixels))
        except (UndecodableImageError, OSError):
            continue
        truth = dataset.ground_truth(index)
        small = thumbnail_of_image(image, image.shape[:2])
        shown = np.flatnonzero(~truth.crowd)
        objects = true_objects(truth, shown, (small.shape[0], small.shape[1]))
        names, palette = metadata["instance_names"], metadata["instance_palette"]
        draw_objects(axes, small, objects, names, palette, fontsize=5.0, scores=False)
    for axes in figure.axes[len(picks) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
