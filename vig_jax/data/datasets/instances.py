"""The instances of a map of objects, as data sets of detection and segmentation give them."""

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8


def instances(
    object_map: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    objects: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
) -> dict[str, Float32[np.ndarray, "n 4"] | Int32[np.ndarray, "n"] | Bool[np.ndarray, "n h w"]]:
    """Returns the boxes, labels and masks of some objects of a map.

    Args:
        object_map: the number of the object that is visible at each pixel.
        objects: numbers of the objects to return, each with at least one pixel.
        labels: class of each of these objects.

    Returns:
        `boxes`: left, top, right and bottom of the visible part in pixels, where right and bottom
        are one past its last pixel. `labels`: int32. `instance_masks`: the visible part.
    """
    masks = object_map == objects.astype(object_map.dtype)[:, None, None]
    height, width = object_map.shape
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    boxes = np.empty((len(objects), 4), np.float32)
    boxes[:, 0] = columns.argmax(axis=1)
    boxes[:, 1] = rows.argmax(axis=1)
    boxes[:, 2] = width - columns[:, ::-1].argmax(axis=1)
    boxes[:, 3] = height - rows[:, ::-1].argmax(axis=1)
    return {"boxes": boxes, "labels": labels.astype(np.int32), "instance_masks": masks}
