"""Classification at native sizes: losses and metrics are those of the images one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common
from kernels_pallas.testing import TOLERANCES
from tests.data.photographs import photo
from vig_jax.config import parse, recipes
from vig_jax.data import DatasetInfo, eval_batches
from vig_jax.errors import ConfigError
from vig_jax.evaluation.evaluate import evaluate, make_predict_step
from vig_jax.layers.pixels import normalise
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.classification import native
from vig_jax.tasks.registry import make_task

SIZES = ((40, 24), (16, 16), (30, 61), (38, 25), (15, 20), (90, 90), (90, 88))
METADATA = {"class_names": ("ape", "bee", "cow", "dog", "elk", "fox")}


def config(name="vig_t", **data):
    values = common.get_config()
    values.model.update(name=name, img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=1)
    values.model.update(dtype="float32", gla_implementation="reference")
    values.data.update(image_size=16, native_sizes=True, max_tokens=20, row_images=3)
    values.data.update(mixup_alpha=0.0, cutmix_alpha=0.0, rand_augment_layers=0)
    values.data.update(erase_probability=0.0, row_tokens=50, **data)
    values.train.update(batch_size=6)
    return parse(values)


class Photos:
    """Images of many sizes with arbitrary labels."""

    info = DatasetInfo("photos", "photos 1", METADATA)

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        return {"image": photo(*SIZES[index], index), "label": index % 6}

    def name_of(self, index):
        return str(index)

    def sizes(self):
        return np.array(SIZES)


@functools.cache
def bundle():
    return make_task(config(), METADATA)


@functools.cache
def variables():
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(bundle().task.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(
            (x.ndim == 1) + 0.3 * generator.standard_normal(x.shape), jnp.float32
        ),
        shapes,
    )


@functools.cache
def log_probabilities():
    """Returns the log-probabilities of each image alone."""
    data, rows, apply = config().data, [], jax.jit(bundle().task.model.apply)
    for index in range(len(SIZES)):
        image = bundle().eval_preprocess(Photos()[index], None)["image"]
        pixels = normalise(jnp.asarray(image)[None], data.mean, data.std)
        rows.append(jax.nn.log_softmax(apply(variables(), pixels)[0]))
    return np.array(rows)


def test_metrics_are_those_of_the_images_alone():
    evaluation, mesh = bundle().evaluation, make_mesh()
    predict = make_predict_step(evaluation, mesh=mesh)
    with eval_batches(Photos(), bundle().eval_preprocess, batch_size=6) as batches:
        state = evaluate(
            evaluation, predict, {"": variables()}, batches, mesh, on_batch=lambda batch: None
        )[""]
    assert predict._cache_size() == 1
    assert state["weight"] == len(SIZES)
    metrics, expected = evaluation.compute(state), log_probabilities()
    labels = np.arange(len(SIZES)) % 6
    guesses = np.argsort(-expected, axis=1)
    assert metrics["top1"] == np.mean(guesses[:, 0] == labels)
    assert metrics["top5"] == pytest.approx(np.mean(guesses[:, 5] != labels))
    loss = -expected[np.arange(len(SIZES)), labels].mean()
    assert metrics["loss"] == pytest.approx(loss, rel=TOLERANCES["float32"].forward)
    assert np.array_equal(state["confusion"].sum(axis=1), np.bincount(labels, minlength=6))


def test_the_loss_is_the_mean_over_images():
    task = bundle().task
    given = [bundle().eval_preprocess(Photos()[i], None) for i in range(6)]
    rows = [bundle().eval_preprocess.row(given[i : i + 3]) for i in (0, 3)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in task.batch_spec}
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in task.batch_spec.items()
    }
    tokens = [row["sizes"].prod(axis=1).sum() for row in rows]
    assert max(tokens) <= 50
    loss, aux = jax.jit(task.loss)(variables(), batch, jax.random.key(0))
    smoothing, expected = 0.1, log_probabilities()[:6]
    right = -((1 - smoothing) * np.diag(expected) + smoothing * expected.mean(axis=1)).mean()
    assert float(loss) == pytest.approx(right, rel=TOLERANCES["float32"].forward)
    assert float(aux.metrics["row_fill"]) == pytest.approx(np.mean(tokens) / 50)


def test_preview_has_the_images_of_the_batch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(native, "draw_sheet", lambda *arguments: drawn.append(arguments))
    given = [bundle().eval_preprocess(Photos()[i], None) for i in range(6)]
    rows = [bundle().eval_preprocess.row(given[i : i + 3]) for i in (0, 3)]
    batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    preview = bundle().preview
    preview.draw(preview.inputs(batch, jax.random.key(0), np.arange(2)), tmp_path / "first.png")
    ((images, targets, names, path),) = drawn
    for image, one in zip(images, given, strict=True):
        np.testing.assert_array_equal(image, one["image"])
    np.testing.assert_allclose(np.diag(targets), 0.9 + 0.1 / 6, rtol=1e-6)
    monkeypatch.undo()
    native.draw_sheet(images, targets, names, path)
    with Image.open(path) as sheet:
        assert sheet.width > 100


def test_any_plain_classifier_can_be_evaluated_at_native_sizes():
    trained = parse(recipes.imagenet("vig_s"))
    data = native.at_native_sizes(trained.data, 256)
    made = make_task(dataclasses.replace(trained, data=data), METADATA)
    spec = made.evaluation.batch_spec
    assert spec["patches"].shape == (8 * 256, 16, 16, 3)
    assert spec["weight"].shape == (8,)
    assert "up to 256 tokens of an image, 8 images in rows of 2048 tokens" in made.summary


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"mixup_alpha": 0.8, "rand_augment_layers": 2},
            r"native_sizes cannot train .*: set config.data.mixup_alpha=0.8, "
            r".rand_augment_layers=2 to 0",
        ),
        ({"augmentations": ("blur",)}, r"config.data.augmentations=\('blur',\) to 0"),
        ({"eval_size": (16, 32)}, r"eval_size=\(16, 32\) has no meaning .*max_tokens limits"),
        ({"row_tokens": 10}, "row_tokens=10 is too small for an image of 20 tokens"),
    ],
)
def test_settings_that_need_squares_are_refused(changed, message):
    given = config()
    data = dataclasses.replace(given.data, **changed)
    with pytest.raises(ConfigError, match=message):
        make_task(dataclasses.replace(given, data=data), METADATA)


def test_models_and_tasks_that_cannot_are_refused():
    given = parse(recipes.imagenet("vig_h_t"))
    data = native.at_native_sizes(given.data, 100)
    with pytest.raises(ConfigError, match=r"the stages of vig_h_t change .* Use vig_t"):
        make_task(dataclasses.replace(given, data=data), METADATA)
    given = parse(recipes.ade20k("vig_t"))
    data = dataclasses.replace(given.data, native_sizes=True)
    with pytest.raises(ConfigError, match="for classification, not for the task 'segmentation'"):
        make_task(
            dataclasses.replace(given, data=data),
            {"class_names": ("a", "b"), "ignore_index": 255},
        )
