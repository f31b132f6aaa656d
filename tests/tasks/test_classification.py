import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common
from vig_jax.config import parse
from vig_jax.errors import DataSetError
from vig_jax.layers.pixels import normalise
from vig_jax.models.from_config import model_from_config
from vig_jax.tasks.classification import Classification, augment
from vig_jax.tasks.classification.evaluation import ClassificationEvaluation
from vig_jax.tasks.classification.preview import ClassificationPreview, PreviewArrays
from vig_jax.tasks.registry import make_task


class Lookup(nn.Module):
    """Logits that are read off the pixels: class c's is the value of pixel (0, c), channel 0."""

    classes: int

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        if train:
            assert self.has_rng("dropout")
        return scale * images[:, 0, : self.classes, 0]


class Constant(nn.Module):
    """The same logits for every image."""

    classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.zeros((len(images), self.classes))


def task(classes=8, **data):
    config = parse(common.get_config()).data
    data = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "image_size": 8} | data
    data = {"rand_augment_layers": 0, "erase_probability": 0.0} | data
    return Classification(
        model=Lookup(classes),
        num_classes=classes,
        data=dataclasses.replace(config, **data),
        label_smoothing=0.1,
    )


def evaluation(classes=8):
    trained = task(classes)
    return ClassificationEvaluation(trained.model, classes, trained.data)


SCALE = {"params": {"scale": jnp.ones(())}}


def images_with_logits(logits):
    images = np.zeros((len(logits), 8, 8, 3), np.uint8)
    images[:, 0, : len(logits[0]), 0] = logits
    return jnp.asarray(images)


def test_normalise_is_per_channel():
    config = parse(common.get_config()).data
    images = jnp.asarray(np.full((1, 2, 2, 3), (0, 128, 255), np.uint8))
    expected = (np.array((0, 128, 255)) / 255 - config.mean) / config.std
    np.testing.assert_allclose(
        normalise(images, config.mean, config.std)[0, 1, 0], expected, rtol=1e-5
    )


def test_metrics_count_weighted_hits():
    ranks = [5, 4, 3, 2, 1, 0, 0, 0]  # of classes 0 to 7: class 0 is the first guess
    batch = {
        "image": images_with_logits([ranks] * 4),
        "label": jnp.array([0, 4, 5, 0]),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]),  # the last row only fills the batch
    }
    sums = jax.device_get(jax.jit(evaluation().predict)(SCALE, batch))
    assert sums["weight"] == 3
    metrics = evaluation().compute(sums)
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(2 / 3)
    assert {place: count for place, count in np.ndenumerate(sums["confusion"]) if count} == {
        (0, 0): 1,
        (4, 0): 1,
        (5, 0): 1,
    }
    log_z = np.log(np.sum(np.exp(ranks)))
    assert metrics["loss"] == pytest.approx(np.mean([log_z - 5, log_z - 1, log_z - 0]), rel=1e-5)


def test_strict_dtype_promotion():
    batch = {
        "image": images_with_logits([[3] * 8] * 8),
        "label": jnp.arange(8),
        "weight": jnp.ones(8),
    }
    expected = jax.eval_shape(evaluation().predict, SCALE, batch)
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(evaluation().predict, SCALE, batch) == expected


def test_equal_logits_are_not_all_hits():
    batch = {
        "image": images_with_logits([[3] * 8] * 8),
        "label": jnp.arange(8),
        "weight": jnp.ones(8),
    }
    sums = evaluation().predict(SCALE, batch)
    assert float(sums["top1"]) == 1
    assert float(sums["top5"]) == 5


def test_fewer_than_five_classes():
    batch = {
        "image": images_with_logits([[1, 2]]),
        "label": jnp.array([0]),
        "weight": jnp.ones(1),
    }
    sums = evaluation(classes=2).predict(SCALE, batch)
    assert (float(sums["top1"]), float(sums["top5"])) == (0, 1)


def test_f1_of_two_classes():
    guesses = [1, 1, 1, 0, 0, 1, 1]
    labels = [1, 1, 0, 1, 0, 0, 1]
    weight = [1.0, 1, 1, 1, 1, 1, 0]  # the last row only fills the batch
    batch = {
        "image": images_with_logits([[1 - guess, guess] for guess in guesses]),
        "label": jnp.array(labels),
        "weight": jnp.array(weight),
    }
    sums = evaluation(classes=2).predict(SCALE, batch)
    metrics = evaluation(classes=2).compute(jax.device_get(sums))
    # Two found, two wrongly seen, one missed.
    assert metrics["f1"] == pytest.approx(4 / 7)
    assert metrics["top1"] == pytest.approx(3 / 6)


def test_f1_of_a_class_that_is_not_there():
    batch = {
        "image": images_with_logits([[1, 0]]),
        "label": jnp.array([0]),
        "weight": jnp.ones(1),
    }
    sums = evaluation(classes=2).predict(SCALE, batch)
    assert evaluation(classes=2).compute(jax.device_get(sums))["f1"] == 0


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (8, {"loss", "top1", "top5"}),
        (6, {"loss", "top1", "top5"}),
        (5, {"loss", "top1"}),
        (2, {"loss", "top1", "f1"}),
    ],
)
def test_metrics_for_numbers_of_classes(classes, names):
    sums = {name: np.array(1.0) for name in ("loss", "top1", "top5", "weight")}
    sums["confusion"] = np.ones((2, 2))
    assert evaluation(classes=classes).compute(sums).keys() == names


def test_nothing_decodable_is_an_error():
    with pytest.raises(DataSetError, match="none of the images"):
        evaluation().compute({name: np.array(0.0) for name in ("loss", "top1", "top5", "weight")})


def test_pairs_of_very_many_classes_are_not_counted():
    batch = {name: jax.ShapeDtypeStruct((2,), jnp.int32) for name in ("label", "weight")}
    batch["image"] = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    for classes, counted in ((2000, True), (2001, False)):
        many = ClassificationEvaluation(Constant(classes), classes, task().data)
        assert ("confusion" in jax.eval_shape(many.predict, {}, batch)) == counted


def test_preview_shows_the_pixels_of_the_batch():
    """Without augmentation and mixing, the preview has the pixels and smoothed labels."""
    config = parse(common.get_config()).data
    plain = task(mixup_alpha=0.0, cutmix_alpha=0.0, mean=config.mean, std=config.std)
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (2, 8, 8, 3), np.uint8))}
    batch["label"] = jnp.array([3, 1])
    preview = ClassificationPreview(plain, ())
    pixels, targets = preview.inputs(batch, jax.random.PRNGKey(0), np.array([1, 0]))
    np.testing.assert_array_equal(pixels, batch["image"][::-1])
    np.testing.assert_allclose(targets[1, 3], 0.9 + 0.1 / 8, rtol=1e-6)


def test_preview_names_the_two_largest_classes(tmp_path, monkeypatch):
    import matplotlib.axes

    captions = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "set_title", lambda axes, text, **_: captions.append(text)
    )
    pixels = np.full((11, 6, 6, 3), (200, 30, 40), np.uint8)
    targets = np.zeros((11, 3), np.float32)
    targets[:, 0], targets[0] = 1, (0.38, 0.02, 0.6)
    preview = ClassificationPreview(task(), ["a cat with a long name", "dog"])
    preview.draw(PreviewArrays(pixels, targets), tmp_path / "first_batch.png")
    assert captions[0] == "class 2 60%\na cat with a lo… 38%"
    assert captions[1:] == ["a cat with a lo… 100%"] * 10
    with Image.open(tmp_path / "first_batch.png") as drawn:
        stored = np.asarray(drawn.convert("RGB"))
    assert 0.3 < (stored == (200, 30, 40)).all(-1).mean() < 0.9


def test_loss_without_mixing_is_smoothed_cross_entropy():
    logits = np.array([[4, 0, 1, 0, 0, 0, 0, 2], [0, 0, 7, 0, 0, 1, 0, 0]])
    labels = np.array([0, 5])
    batch = {"image": images_with_logits(logits), "label": jnp.asarray(labels)}
    loss, _ = task(mixup_alpha=0.0, cutmix_alpha=0.0).loss(SCALE, batch, jax.random.PRNGKey(0))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(0.9 * log_p[[0, 1], labels] + 0.1 * log_p.mean(1)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_loss_is_a_function_of_the_key():
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)),
        "label": jnp.arange(4),
    }
    mixing = task(std=(1.0,) * 3, mixup_group=4)
    loss = jax.jit(mixing.loss)
    first, again, other = (
        float(loss(SCALE, batch, jax.random.PRNGKey(seed))[0]) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_model_from_config_passes_what_is_set():
    config = parse(common.get_config()).model
    config = dataclasses.replace(config, num_classes=7, embed_dim=32, num_heads=1, depth=1)
    model = model_from_config(config)
    assert (model.num_classes, model.embed_dim, model.depth) == (7, 32, 1)
    assert model.img_size == 224  # unset: the variant's own
    assert model.dtype == jnp.bfloat16
    assert model.param_dtype == jnp.float32
    assert model.remat is False


def test_model_from_config_of_the_hierarchical_family():
    config = parse(common.get_config()).model
    config = dataclasses.replace(config, name="vig_h_t", depths=(1, 1, 2, 1), remat=True)
    model = model_from_config(config)
    assert (model.depths, model.embed_dims, model.remat) == (
        (1, 1, 2, 1),
        (96, 192, 384, 768),
        True,
    )
    with pytest.raises(ValueError, match="vig_h_t has no setting 'img_size'"):
        model_from_config(dataclasses.replace(config, img_size=224))


def test_unresolved_config_is_refused():
    with pytest.raises(ValueError, match="num_classes is unset"):
        make_task(parse(common.get_config()), {})


def test_every_augmentation_counts():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8))

    def changed(**data):
        settings = task(mixup_alpha=0.0, cutmix_alpha=0.0, **data).data
        out = jax.jit(lambda key: augment(key, images, settings))(jax.random.PRNGKey(0))
        difference = np.abs(out - normalise(images, settings.mean, settings.std))
        return np.mean(np.any(difference > 1e-3, axis=(1, 2, 3)))

    assert changed() == 0
    assert changed(erase_probability=1.0) > 0.9
    assert changed(color_jitter=0.4) > 0.9
    # RandAugment excludes colour jitter, as in timm.
    assert 0.3 < changed(rand_augment_layers=1, color_jitter=0.4) < 0.7
