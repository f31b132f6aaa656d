"""A small detector, and images with objects, for the tests of the task."""

import dataclasses

import jax
import numpy as np

from vig_jax.config import DetectionConfig, parse, recipes
from vig_jax.models.from_config import detector_from_config
from vig_jax.tasks.detection.task import Detection

CLASSES = 3


SIZES = {
    "vig_t": {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 1},
    "vig_h_t": {"embed_dims": (8, 8, 8, 16), "depths": (1,) * 4, "num_heads": (1,) * 4},
}


def config(name="vig_h_t", **task):
    """Returns settings with which every anchor and region is a sample."""
    values = recipes.imagenet(name)
    values.model.update(SIZES[name])
    values.model.update(num_classes=CLASSES, dtype="float32", drop_path_rate=0.0)
    values.model.gla_implementation = "reference"
    settings = DetectionConfig(
        name="detection", buckets=((64, 96), (96, 64)), resize_scale=(96, 64), max_boxes=4,
        mask_side=14, channels=8, box_channels=8, anchor_scale=3.0,
        proposals=24, train_level_proposals=24, eval_level_proposals=24, rpn_samples=1600,
        rpn_positive_share=1.0, roi_samples=64, roi_positive_share=1.0,
    )  # fmt: skip
    return dataclasses.replace(parse(values), task=dataclasses.replace(settings, **task))


def make_task(name="vig_h_t", **task):
    settings = config(name, **task)
    model = detector_from_config(settings)
    model = model.clone(backbone=model.backbone.clone(dtype=None))  # that of the parameters
    return Detection(model, settings.data, settings.task)


def random_params(task, dtype):
    """Returns parameters that make the predictions of all regions different."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    return jax.tree.map(lambda x: (0.3 * generator.standard_normal(x.shape)).astype(dtype), shapes)


def batch(images, objects, size=(30, 60), canvas=(64, 96), rows=4, side=14, seed=0):
    """Returns a batch of images with `objects` objects each, and padding up to `rows` objects."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((images, *canvas, 3), np.uint8)
    pixels[:, : size[0], : size[1]] = generator.integers(0, 256, (images, *size, 3))
    corners = generator.uniform(0, 0.55, (images, objects, 2)) * size[::-1]
    sides = generator.uniform(0.3, 0.45, (images, objects, 2)) * size[0]
    boxes = np.concatenate([corners, corners + sides], -1).astype(np.float32)
    arrays = {
        "boxes": boxes,
        "labels": generator.integers(0, CLASSES, (images, objects)).astype(np.int32),
        "valid": np.ones((images, objects), bool),
        "masks": generator.integers(0, 2, (images, objects, side, side)).astype(np.uint8) * 255,
    }
    for name, x in arrays.items():
        arrays[name] = np.pad(x, [(0, 0), (0, rows - objects)] + [(0, 0)] * (x.ndim - 2))
    arrays |= {"image": pixels, "size": np.tile(np.array(size, np.int32), (images, 1))}
    return arrays | {"image_id": np.arange(images, dtype=np.int32)}
