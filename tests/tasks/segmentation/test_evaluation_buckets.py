"""A pass over images of several sizes, against the definition applied to each image."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vig_jax.config import SegmentationConfig, parse
from vig_jax.data import DatasetInfo, eval_batches
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.evaluation.evaluate import evaluate, make_predict_step
from vig_jax.layers.pixels import normalise
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.segmentation.evaluation import SegmentationEvaluation

CLASSES, CROP, STRIDE = 4, 16, 12
SIZES = ((30, 20), (17, 40), (12, 9), (30, 21), (64, 17))  # width, height


class Net(nn.Module):
    """A convolution of stride 4, a nonlinearity, and another convolution: borders matter."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.tanh(nn.Conv(8, (7, 7), (4, 4))(images))
        return nn.Conv(CLASSES, (3, 3))(x)


class Photos:
    info = DatasetInfo("photos", "photos 1", {})

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        width, height = SIZES[self.numbers[index]]
        rng = np.random.default_rng(index)
        mask = rng.integers(0, CLASSES, (height, width)).astype(np.uint8)
        mask[0] = 255
        return {"image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8), "mask": mask}

    def name_of(self, index):
        return str(index)

    def sizes(self):
        return np.array([SIZES[number] for number in self.numbers], np.int32)


def settings(**changes):
    data = dataclasses.replace(parse(common.get_config()).data, image_size=CROP)
    task = SegmentationConfig(resize_scale=(48, 20), eval_stride=STRIDE, **changes)
    return data, task


def resized(logits, shape):
    return jax.image.resize(logits, (*shape, logits.shape[-1]), "bilinear", antialias=False)


def defined_logits(logits_of, image, mode):
    """Logits of an image at its size."""
    if mode == "whole":
        return resized(logits_of(image[None])[0], image.shape[:2])
    height, width = image.shape[:2]
    total, count = jnp.zeros((height, width, CLASSES)), np.zeros((height, width, 1))
    steps = [max(math.ceil((side - CROP) / STRIDE), 0) + 1 for side in (height, width)]
    for row in range(steps[0]):
        for column in range(steps[1]):
            bottom = min(row * STRIDE + CROP, height)
            right = min(column * STRIDE + CROP, width)
            place = np.s_[max(bottom - CROP, 0) : bottom, max(right - CROP, 0) : right]
            window = image[place]
            total = total.at[place].add(resized(logits_of(window[None])[0], window.shape[:2]))
            count[place] += 1
    return total / count


def defined_confusion(logits_of, arrays, task):
    """Pixel counts of one image, from what the preprocess makes of it."""
    height, width = arrays["original"]
    scales = [f"_{i}" for i in range(len(task.eval_scales))] if len(task.eval_scales) > 1 else [""]
    outputs = []
    for end in scales:
        tall, wide = arrays[f"size{end}"]
        image = arrays[f"image{end}"][:tall, :wide]
        for flipped in (False, True)[: 1 + task.eval_flip]:
            seen = image[:, ::-1] if flipped else image
            logits = resized(defined_logits(logits_of, seen, task.eval_mode), (height, width))
            outputs.append(logits[:, ::-1] if flipped else logits)
    if len(outputs) > 1:
        outputs = [sum(jax.nn.softmax(logits) for logits in outputs)]
    labels = np.asarray(outputs[0].argmax(-1))
    mask = arrays["mask"][:height, :width]
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (mask[mask < 255], labels[mask < 255]), 1)
    return counts


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, range(5)),
        ({"eval_mode": "whole"}, (0, 1, 3)),  # two of them in one bucket
        ({"eval_scales": (1.0, 0.6), "eval_flip": True}, (0, 1, 3)),
    ],
    ids=["slide", "whole", "scales"],
)
def test_images_of_different_sizes(changes, numbers):
    data, task = settings(**changes)
    dataset, model = Photos(numbers), Net()
    preprocess = SegmentationPreprocess(data, task, np.arange(256, dtype=np.uint8), train=False)
    variables = jax.tree.map(
        lambda leaf: 3 * leaf, model.init(jax.random.key(0), jnp.zeros((1, CROP, CROP, 3)))
    )
    evaluation = SegmentationEvaluation(model, CLASSES, data, task)
    mesh = make_mesh()
    predict = make_predict_step(evaluation, mesh=mesh)
    with eval_batches(dataset, preprocess, batch_size=2) as batches:
        state = evaluate(
            evaluation, predict, {"": variables}, batches, mesh, on_batch=lambda batch: None
        )[""]
    assert state.images == len(numbers)
    logits_of = jax.jit(lambda x: model.apply(variables, normalise(x, data.mean, data.std)))
    expected = sum(
        defined_confusion(logits_of, preprocess(dataset[i], None), task)
        for i in range(len(numbers))
    )
    np.testing.assert_array_equal(state.confusion, expected)
    assert len(np.unique(state.confusion)) > CLASSES  # several classes are predicted
