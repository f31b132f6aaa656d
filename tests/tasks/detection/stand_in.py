"""A detector that knows what it will find, for tests of evaluation and prediction."""

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vig_jax.ops import rle
from vig_jax.ops.paste import cut_to_box

CELLS = 28  # of a mask, along a side
LOGIT = 12.0


class StandIn(nn.Module):
    """Returns the rows of the collection `table` whose number is the red of the first pixel."""

    masks: bool = True
    candidates: int = 9

    def detect(self, images, sizes):
        red = images[:, 0, 0, 0]
        keys = self.get_variable("table", "keys")
        rows = jnp.argmin(jnp.abs(keys - red[:, None]), axis=1)
        names = ("boxes", "scores", "classes", "candidates", *(["masks"] if self.masks else []))
        found = {name: self.get_variable("table", name)[rows] for name in names}
        return SimpleNamespace(**found)


def detections(dataset, scale, count=12, noise=1.5, seed=0):
    """Returns made-up outputs for all images: objects found with errors, twice or never, and noise.

    Args:
        dataset: has the objects.
        scale: pixels of the resized image per pixel of the stored image, along x and y.
        count: detections of an image; the rest is padding.
        noise: standard deviation of the corners, pixels of the stored image.
        seed: of the errors.
    """
    rng = np.random.default_rng(seed)
    n = len(dataset)
    table = {
        "boxes": np.zeros((n, count, 4), np.float32),
        "scores": np.zeros((n, count), np.float32),
        "classes": np.full((n, count), -1, np.int32),
        "masks": np.zeros((n, count, CELLS, CELLS), np.float32),
        "candidates": np.arange(n, dtype=np.int32) + 8,
    }
    classes = len(dataset.info.metadata["instance_names"])
    for index in range(n):
        truth = dataset.ground_truth(index)
        width, height = truth.size
        objects = rng.permutation(np.repeat(np.arange(len(truth.labels)), 2))[: count - 3]
        for row in range(len(objects) + 2):
            if row < len(objects):
                number = objects[row]
                box = truth.boxes[number] + noise * rng.normal(size=4)
                label = truth.labels[number] if rng.random() < 0.9 else rng.integers(classes)
                mask = rle.decode(truth.masks[number])
                score = rng.uniform(0.2, 1)
            else:
                low = rng.uniform(0, 0.6, 2) * truth.size
                box = np.concatenate([low, low + rng.uniform(0.1, 0.5, 2) * truth.size])
                label, score = rng.integers(classes), rng.uniform(0, 0.6)
                mask = rng.random((height, width)) < 0.5
            box[2:] = np.maximum(box[2:], box[:2] + 2)
            table["boxes"][index, row] = box * np.tile(scale, 2)
            table["scores"][index, row], table["classes"][index, row] = score, label
            table["masks"][index, row] = LOGIT * (cut_to_box(mask, box, CELLS) / 255 - 0.5)
    return table
