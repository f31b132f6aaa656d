import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from vig_jax.metrics.mean_iou import ClassScores, mean_of_known, summary
from vig_jax.tasks.segmentation.label_maps import confusion_counts

CASES = pytest.mark.parametrize("case", golden_seg.facts("metrics")["cases"])
NAMES = {
    "IoU": "iou",
    "Acc": "accuracy",
    "Recall": "accuracy",
    "Dice": "dice",
    "Fscore": "f_score",
    "Precision": "precision",
}


def counted(case):
    """Our counts over the images of a case, int64."""
    facts, arrays = golden_seg.load("metrics")
    classes = facts["cases"][case]["num_classes"]
    labels = golden_seg.numbered(arrays, f"{case}/label/")
    predictions = golden_seg.numbered(arrays, f"{case}/prediction/")
    counts = [
        np.asarray(confusion_counts(jnp.asarray(p), jnp.asarray(t), classes), np.int64)
        for p, t in zip(predictions, labels, strict=True)
    ]
    return sum(counts)


@CASES
def test_golden_counts(case):
    np.testing.assert_array_equal(
        counted(case), golden_seg.load("metrics").arrays[f"{case}/confusion"]
    )


@CASES
def test_golden_scores(case):
    facts, arrays = golden_seg.load("metrics")
    confusion = arrays[f"{case}/confusion"]
    scores = ClassScores.of(confusion)
    for theirs, ours in NAMES.items():
        np.testing.assert_allclose(getattr(scores, ours), arrays[f"{case}/{theirs}"], rtol=1e-6)
        mean = 100 * mean_of_known(getattr(scores, ours))
        assert mean == pytest.approx(facts["cases"][case]["summary"][f"m{theirs}"], abs=0.006)
    found = summary(confusion)
    expected = facts["cases"][case]["summary"]
    for name in ("mIoU", "mAcc", "aAcc"):
        assert 100 * found[name.lower()] == pytest.approx(expected[name], abs=0.006)
    assert found["aacc"] == pytest.approx(float(arrays[f"{case}/aAcc"]), rel=1e-6)


def test_absent_classes():
    confusion = np.array([[6, 2, 0, 0], [0, 0, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0]])
    scores = ClassScores.of(confusion)
    np.testing.assert_array_equal(scores.iou, [6 / 9, 0, 3 / 4, np.nan])  # class 1 is predicted
    np.testing.assert_array_equal(scores.accuracy, [6 / 8, np.nan, 3 / 4, np.nan])
    found = summary(confusion)
    assert found["miou"] == pytest.approx((6 / 9 + 3 / 4) / 3)
    assert found["macc"] == pytest.approx(3 / 4)
    assert found["aacc"] == pytest.approx(9 / 12)
    assert all(np.isnan(value) for value in summary(np.zeros((2, 2), np.int64)).values())


def test_large_counts_are_exact():
    confusion = np.diag([2**53, 1]).astype(np.int64)
    np.testing.assert_array_equal(ClassScores.of(confusion).iou, [1, 1])
