"""Evaluation over batches of images of different sizes."""

import csv
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vig_jax.config import SegmentationConfig, parse
from vig_jax.errors import DataSetError, ReportError
from vig_jax.evaluation.evaluate import evaluate, make_predict_step
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.protocol import Evaluation, SeveralPrograms
from vig_jax.tasks.segmentation.evaluation import SegmentationEvaluation
from vig_jax.tasks.segmentation.report import draw_results
from vig_jax.tasks.segmentation.results import MOST_WORST, SegmentationResults
from vig_jax.tasks.segmentation.thumbnails import SIDE

CLASSES = 3
NAMES = ("sky", "$sea$")
PALETTE = ((0, 0, 255), (0, 200, 200), (90, 90, 0))


class Brightest(nn.Module):
    """Logits are the pixels: the brightest channel is the class."""

    @nn.compact
    def __call__(self, images, train=False):
        return images


def evaluation(**settings):
    data = dataclasses.replace(parse(common.get_config()).data, image_size=8)
    settings = {"eval_stride": 6, **settings}
    return SegmentationEvaluation(
        Brightest(), CLASSES, data, SegmentationConfig(**settings), NAMES, PALETTE
    )


def batch(indices, rng, mistakes=0.3):
    """Images of 11 x 8 pixels on canvases of 14 x 8, not resized, and their classes."""
    count, (height, width) = len(indices), (11, 8)
    made = {
        "image": np.zeros((count, 14, 8, 3), np.uint8),
        "size": np.full((count, 2), (height, width), np.int32),
        "original": np.full((count, 2), (height, width), np.int32),
        "mask": np.full((count, 16, 16), 255, np.uint8),
        "index": np.array(indices, np.int64),
        "weight": np.array([index >= 0 for index in indices], np.float32),
    }
    seen = rng.integers(0, CLASSES, (count, height, width))
    made["image"][:, :height] = 200 * (seen[..., None] == np.arange(CLASSES))
    wrong = rng.random(seen.shape) < mistakes * rng.random((count, 1, 1))
    made["mask"][:, :height, :width] = np.where(wrong, (seen + 1) % CLASSES, seen)
    made["mask"][:, 0, :3] = 255
    return made, seen


def counts_of(made, seen):
    counts = np.zeros((len(seen), CLASSES, CLASSES), np.int64)
    for row, weight in enumerate(made["weight"]):
        mask = made["mask"][row, : seen.shape[1], : seen.shape[2]]
        if weight:
            np.add.at(counts[row], (mask[mask < 255], seen[row][mask < 255]), 1)
    return counts


def run(task, batches):
    mesh = make_mesh()
    predict = make_predict_step(task, mesh=mesh)
    return evaluate(task, predict, {"": {}}, batches, mesh, on_batch=lambda batch: None)[""]


def test_a_pass_counts_each_image_once_and_keeps_the_worst():
    rng = np.random.default_rng(0)
    task = evaluation()
    assert isinstance(task, Evaluation)
    assert isinstance(task, SeveralPrograms)
    pairs = [batch(range(start, start + 4), rng) for start in (0, 4, 8, 12, 16)]
    pairs.append(batch([20, -1, 21, -1], rng))
    assert set(task.batch_spec) <= set(pairs[0][0])
    state = run(task, [made for made, _ in pairs])
    each = np.concatenate([counts_of(made, seen)[made["weight"] > 0] for made, seen in pairs])
    np.testing.assert_array_equal(state.confusion, each.sum(0))
    assert state.confusion.dtype == np.int64
    assert state.images == 22
    metrics = task.compute(state)
    hits, true, predicted = (
        f(each.sum(0)) for f in (np.diag, lambda c: c.sum(1), lambda c: c.sum(0))
    )
    assert metrics == {
        "miou": pytest.approx(np.mean(hits / (true + predicted - hits))),
        "macc": pytest.approx(np.mean(hits / true)),
        "aacc": pytest.approx(hits.sum() / true.sum()),
    }
    accuracies = np.array([np.trace(counts) / counts.sum() for counts in each])
    assert len(state.worst) == MOST_WORST
    assert [w.iou for w in state.worst] == sorted(w.iou for w in state.worst)
    for worst in state.worst:
        assert worst.accuracy == pytest.approx(accuracies[worst.index])
        made, seen = pairs[worst.index // 4]
        row = made["index"].tolist().index(worst.index)
        np.testing.assert_array_equal(worst.predicted, seen[row])
        np.testing.assert_array_equal(worst.truth, made["mask"][row, :11, :8])
        np.testing.assert_array_equal(worst.image, made["image"][row, :11])
    parts = [run(task, [made for made, _ in pairs[i::2]]) for i in range(2)]
    merged = task.merge(parts)
    np.testing.assert_array_equal(merged.confusion, state.confusion)
    assert [w.index for w in merged.worst] == [w.index for w in state.worst]


def test_one_program_does_what_several_do():
    task = evaluation(eval_flip=True)
    made, _ = batch(range(2), np.random.default_rng(1))
    outputs = jax.jit(task.predict)({}, {name: made[name] for name in task.batch_spec})
    state = task.update(task.init(), jax.device_get(outputs), made)
    np.testing.assert_array_equal(state.confusion, run(task, [made]).confusion)


def test_thumbnails_are_small():
    task = evaluation(eval_mode="whole")
    height, width = 700, 300
    rng = np.random.default_rng(0)
    seen = np.kron(rng.integers(0, CLASSES, (7, 3)), np.ones((100, 100), int))
    made = {
        "image": (200 * (seen[::10, ::10, None] == np.arange(CLASSES))).astype(np.uint8)[None],
        "size": np.array([[70, 30]], np.int32),
        "original": np.array([[height, width]], np.int32),
        "mask": np.full((1, 768, 512), 255, np.uint8),
        "index": np.array([5]),
        "weight": np.ones(1, np.float32),
    }
    made["mask"][0, :height, :width] = (seen + 1) % CLASSES
    (worst,) = run(task, [made]).worst
    assert worst.iou < 1e-3
    assert worst.truth.shape == worst.predicted.shape == worst.image.shape[:2] == (SIDE, 110)
    assert ((worst.predicted + 1) % CLASSES == worst.truth).mean() > 0.9
    assert (worst.image.argmax(-1) == worst.predicted).mean() > 0.9


def test_nothing_to_count():
    task = evaluation()
    with pytest.raises(DataSetError, match="none of the images"):
        task.compute(task.init())
    made, _ = batch([0], np.random.default_rng(0))
    made["mask"][:] = 255
    state = run(task, [made])
    assert state.worst == ()
    with pytest.raises(DataSetError, match="none of the pixels of 1 images has a label"):
        task.compute(state)


class Overflowing(nn.Module):
    """A logit is infinite where a pixel is bright."""

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.where(images > 0, jnp.inf, 0)


@pytest.mark.parametrize("flip", [False, True])
def test_logits_that_are_not_finite(flip):
    task = dataclasses.replace(evaluation(eval_flip=flip), model=Overflowing())
    made, _ = batch([0, 1, -1], np.random.default_rng(0))
    made["image"][1:] = 9  # only image 0 overflows
    state = run(task, [made])
    assert all(np.isnan(value) for value in task.compute(state).values())
    made["image"][0] = 9
    made["image"][2, 0] = 200  # in a row that does not count
    assert 0 < task.compute(run(task, [made]))["aacc"] < 1


def test_results_are_drawn(tmp_path):
    assert draw_results(tmp_path) == []
    task = evaluation()
    made, _ = batch(range(3), np.random.default_rng(0))
    state = run(task, [made])
    task.save(state, tmp_path, "vig_t, weights")
    stored = SegmentationResults.load(tmp_path)
    np.testing.assert_array_equal(stored.confusion, state.confusion)
    assert stored.class_names == ("sky", "$sea$", "class 2")
    assert stored.palette.tolist() == [list(colour) for colour in PALETTE]
    for ours, theirs in zip(stored.worst, state.worst, strict=True):
        assert (ours.index, ours.iou, ours.accuracy) == (theirs.index, theirs.iou, theirs.accuracy)
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.predicted, theirs.predicted)
    written = draw_results(tmp_path)
    assert all(path.stat().st_size > 0 for path in written)
    assert {path.name for path in written} == {
        *("class_iou.csv", "class_iou.png", "confusion.png", "top_confusions.csv"),
        "worst_images.png",
    }
    with (tmp_path / "class_iou.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["sky", "$sea$", "class 2"]
    details = task.details(state, "image {}".format)
    assert details["classes"] == stored.rows()
    first = state.worst[0]
    assert details["worst_images"][0] == {
        "image": f"image {first.index}",
        "miou": first.iou,
        "aacc": first.accuracy,
    }
    hits = np.diag(state.confusion)
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(
        hits / state.confusion.sum(1), abs=1e-6
    )
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    path = tmp_path / "segmentation.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ReportError, match="is damaged"):
        draw_results(tmp_path)
