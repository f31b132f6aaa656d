"""The detections of an image in its stored size: from the arrays of a detector, and as COCO's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vig_jax.metrics.coco_matching import Found
from vig_jax.ops import rle
from vig_jax.ops.paste import paste_part
from vig_jax.ops.rle import Rle


def found_in_image(
    outputs: Mapping[str, Float[np.ndarray, "n ..."] | Int[np.ndarray, "n"]],
    scale: Float[np.ndarray, "2"],
    original: Int[np.ndarray, "2"],
) -> Found:
    """Returns the detections of one image in pixels of the stored image.

    Boxes are divided by the scale and cut to the image. Masks are pasted bilinearly into the image,
    and a pixel is of the object from a probability of 0.5 on. Source: mmdet,
    roi_heads/mask_heads/fcn_mask_head.py.

    Args:
        outputs: of the detector: `boxes` [n, 4], x1, y1, x2, y2 in pixels of the resized image;
            `scores` [n]; `classes` [n], -1 in rows that are not used; and, for models with masks,
            `masks` [n, h, w], logits over the box.
        scale: pixels of the resized image per pixel of the stored image, along x and y.
        original: height and width of the stored image, pixels.
    """
    height, width = original.tolist()
    used = np.flatnonzero(outputs["classes"] >= 0)
    boxes = outputs["boxes"][used].astype(np.float64) / np.tile(scale.astype(np.float64), 2)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height]))
    masks = None
    if "masks" in outputs:
        values = _probabilities(outputs["masks"][used])
        masks = tuple(_pasted(x, box, height, width) for x, box in zip(values, boxes, strict=True))
    return Found(
        boxes=boxes,
        scores=outputs["scores"][used].astype(np.float64),
        labels=outputs["classes"][used].astype(np.int32),
        masks=masks,
    )


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float32))


def _pasted(values: np.ndarray, box: np.ndarray, height: int, width: int) -> Rle:
    part, top, left = paste_part(values, box, height, width)
    encoded = rle.encode_part(part >= 0.5, top, left, height, width)
    return encoded._replace(counts=encoded.counts.astype(np.int32))  # many are kept in memory


def best_of(found: Found, least_score: float) -> Int[np.ndarray, "m"]:
    """Returns the numbers of the detections with a score of at least `least_score`, best first."""
    order = np.argsort(-found.scores, kind="stable")
    return order[found.scores[order] >= least_score]


def kept_above(found: Found, least_score: float) -> Found:
    """Returns the detections of `best_of`."""
    kept = best_of(found, least_score)
    return Found(
        boxes=found.boxes[kept],
        scores=found.scores[kept],
        labels=found.labels[kept],
        masks=None if found.masks is None else tuple(found.masks[i] for i in kept.tolist()),
    )


def coco_rows(found: Found, image_id: int, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the detections of an image in the format of COCO's results.

    Args:
        found: the detections.
        image_id: number of the image.
        category_ids: number of each class.

    Yields:
        `image_id`, `category_id`, `bbox` as left, top, width and height in pixels, `score`, and
        `segmentation` as compressed runs if there are masks.
    """
    boxes = found.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = np.round(boxes, 4).tolist(), found.scores.tolist(), found.labels.tolist()
    for i, (box, score, label) in enumerate(zip(*columns, strict=True)):
        row = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": round(score, 9),  # all digits of float32: equal scores stay rare
        }
        if found.masks is not None:
            mask = found.masks[i]
            row["segmentation"] = {
                "size": [mask.height, mask.width],
                "counts": rle.to_string(mask),
            }
        yield row
