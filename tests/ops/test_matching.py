import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.ops.boxes import iou
from vig_jax.ops.matching import BACKGROUND, IGNORED, Matcher

CASES = golden_det.facts("matcher")["cases"]
MM_RPN, MM_ROI = Matcher(), Matcher(0.5, 0.5, least_low_quality=0.5)
TV_RPN = Matcher(low_quality="own", least_low_quality=0.0)
TV_ROI = Matcher(0.5, 0.5, low_quality="off")
MATCHERS = {"mm_rpn": MM_RPN, "mm_roi": MM_ROI, "tv_rpn": TV_RPN, "tv_roi": TV_ROI}


def padded(truth, count, dtype):
    """Returns boxes with rows of zeros below, and which of them are real."""
    rows = np.concatenate([truth, np.zeros((count - len(truth), 4))])
    return jnp.asarray(rows, dtype), jnp.arange(count) < len(truth)


def at_no_threshold(priors, boxes, matcher):
    """Returns which candidates have no IoU that rounding could move over a threshold.

    On a GPU, XLA divides numbers in float32 with an error of up to two units in the last place.
    """
    if jax.default_backend() == "cpu" or priors.dtype == np.float64:
        return np.ones(len(priors), bool)
    overlaps = np.asarray(iou(priors, boxes))
    distances = [np.abs(overlaps - x) for x in (matcher.positive, matcher.negative)]
    return (np.minimum(*distances) > 1e-6).all(axis=1)


@pytest.mark.parametrize("case", CASES)
def test_golden(precision, case):
    arrays = golden_det.load("matcher").below(f"{case}_")
    priors = precision.inputs(arrays["priors"])
    truth = padded(arrays["gt"], len(arrays["gt"]) + 3, precision.dtype)
    regions = precision.inputs(arrays["ignore"]) if "ignore" in arrays else None
    for name, matcher in MATCHERS.items():
        for ending, share in (("", -1.0), ("_iof50", 0.5)):
            expected = arrays.get(name + ending)
            if expected is None:
                continue
            chosen = dataclasses.replace(matcher, ignored_iof=share)
            found = jax.jit(lambda m, *x: m(*x, None, regions), static_argnums=0)(
                chosen, priors, *truth
            )
            shift = 1 if name.startswith("mm") else 0
            clear = at_no_threshold(priors, precision.inputs(arrays["gt"]), chosen)
            assigned = np.asarray(found.assigned)[clear]
            np.testing.assert_array_equal(assigned + shift, expected[clear], err_msg=name)
            if name.startswith("mm"):
                precision.close(found.iou, arrays[f"{name}{ending}_iou"], 1e-10)
                labels = np.append(arrays["labels"], [-1, -1])  # at -1 and -2: none
                expected = arrays[f"{name}{ending}_labels"]
                np.testing.assert_array_equal(labels[assigned], expected[clear])


@pytest.mark.parametrize("name", MATCHERS)
def test_padding_changes_nothing(name):
    arrays = golden_det.load("matcher").below(f"{CASES[0]}_")
    priors = np.asarray(arrays["priors"], np.float32)
    count = len(arrays["gt"])
    for truth in (arrays["gt"], arrays["gt"][:0]):
        run = jax.jit(MATCHERS[name])
        expected = run(jnp.asarray(priors), *padded(truth, count, np.float32))
        more = jnp.asarray(np.concatenate([priors, priors]))
        inside = jnp.arange(len(more)) < len(priors)
        found = run(more, *padded(truth, 2 * count, np.float32), inside)
        np.testing.assert_array_equal(found.assigned[: len(priors)], expected.assigned)
        assert (found.assigned[len(priors) :] == IGNORED).all()
        if not len(truth):
            assert (expected.assigned == BACKGROUND).all()


def test_the_order_of_boxes_does_not_matter():
    arrays = golden_det.load("matcher").below(f"{CASES[0]}_")
    priors = jnp.asarray(arrays["priors"], jnp.float32)
    order = np.random.default_rng(0).permutation(len(arrays["gt"]))
    run = jax.jit(MM_RPN)
    first = run(priors, *padded(arrays["gt"], len(order), np.float32)).assigned
    second = run(priors, *padded(arrays["gt"][order], len(order), np.float32)).assigned
    np.testing.assert_array_equal(np.where(second >= 0, order[second], second), first)


def test_the_rule_is_checked():
    with pytest.raises(ValueError, match="low_quality='best' must be"):
        Matcher(low_quality="best")
