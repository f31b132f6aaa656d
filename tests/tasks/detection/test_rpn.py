"""The region proposal network against golden values of mmdet and torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from tests.golden_seg import last, numbered, relative_error
from tests.tasks.detection import given
from vig_jax.heads.rpn import RPNHead
from vig_jax.heads.select import ProposalSelector
from vig_jax.ops.anchors import AnchorGenerator
from vig_jax.ops.matching import IGNORED, Matcher
from vig_jax.ops.sampling import image_keys
from vig_jax.tasks.detection.losses import rpn_loss
from vig_jax.tasks.detection.targets import anchor_targets, sample_anchors

MATCHERS = {"mm": Matcher(), "tv": Matcher(low_quality="own", least_low_quality=0.0)}
# Losses, and everything else; anchors and targets are float32 in mmdet.
TOLERANCES = {
    ("mm", np.float64): (2e-5, 2e-5),
    ("tv", np.float64): (1e-6, 1e-9),
    ("mm", np.float32): (1e-4, 1e-4),
    ("tv", np.float32): (1e-4, 1e-4),
}


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def anchors_of(facts, library, dtype):
    sizes = [tuple(size) for size in facts["levels"]]
    if library == "mm":
        return AnchorGenerator().boxes(sizes, dtype=dtype)
    return AnchorGenerator(rounded=True).boxes(sizes, tuple(facts["padded"]), dtype)


def head_and_params(golden, dtype):
    weights = golden.below("w.")
    head = RPNHead(channels=len(weights["conv.0.0.bias"]))
    return head, golden_det.tree(weights, dtype)


def truths(golden, dtype):
    boxes = list(numbered(golden.arrays, "gt"))
    count = max(map(len, boxes)) + given.PADDING
    return [given.truth(x, np.zeros(len(x), int), count, dtype) for x in boxes]


@pytest.mark.parametrize("library", MATCHERS)
def test_losses_and_gradients(library, dtype):
    golden = golden_det.load("rpn")
    head, params = head_and_params(golden, dtype)
    maps = [jnp.asarray(last(x), dtype) for x in numbered(golden.arrays, "map")]
    objects = truths(golden, dtype)
    assigned = golden.below(f"{library}_" + ("assigned" if library == "mm" else "labels"))
    count = sum(len(golden.arrays[f"{library}_{k}0"]) for k in ("pos", "neg")) + given.PADDING
    samples = [
        given.samples(golden.arrays, f"{library}_{{}}{i}", count) for i in range(len(objects))
    ]

    @jax.jit
    def run(params, maps):
        anchors = jnp.concatenate(anchors_of(golden.facts, library, dtype))
        regions = jnp.asarray(golden.facts["mm_pad_shapes"])
        matches, targets = [], []
        for i, (truth, chosen) in enumerate(zip(objects, samples, strict=True)):
            inside = None
            if library == "mm":
                sizes = [tuple(size) for size in golden.facts["levels"]]
                inside = jnp.concatenate(AnchorGenerator().valid(sizes, regions[i]))
            found = MATCHERS[library](anchors, truth.boxes, truth.valid, inside).assigned
            matches.append(found)
            targets.append(anchor_targets(anchors, found, chosen, truth))

        def losses(params, maps):
            levels = head.apply({"params": params}, maps)
            logits, deltas = (jnp.concatenate(x, 1) for x in zip(*levels, strict=True))
            both = jax.tree.map(lambda *x: jnp.stack(x), *targets)
            index = both.samples.indices
            chosen = (
                jnp.take_along_axis(logits, index, 1),
                jnp.take_along_axis(deltas, index[..., None], 1),
            )
            beta = 0.0 if library == "mm" else 1 / 9
            flags = both.samples.positive, both.samples.valid
            loss = rpn_loss(*chosen, both.deltas, *flags, beta)
            return sum(loss), (loss, levels)

        (_, rest), gradients = jax.value_and_grad(losses, (0, 1), has_aux=True)(params, maps)
        return matches, rest, gradients

    matches, (losses, levels), (by_param, by_map) = run(params, maps)
    tolerance, exact = TOLERANCES[library, dtype]
    for i, found in enumerate(matches):
        if library == "mm":
            expected = np.where(golden.arrays[f"mm_valid{i}"], assigned[str(i)] - 1, IGNORED)
            np.testing.assert_array_equal(found, expected)
        else:
            labels = np.where(found >= 0, 1, np.where(found == IGNORED, -1, 0))
            np.testing.assert_array_equal(labels, assigned[str(i)])
    for i, (logits, deltas) in enumerate(levels):
        expected = last(golden.arrays[f"logits{i}"]).reshape(logits.shape)
        assert relative_error(logits, expected) < min(exact, 2e-5)
        expected = last(golden.arrays[f"deltas{i}"]).reshape(deltas.shape)
        assert relative_error(deltas, expected) < min(exact, 2e-5)
    for loss, name in zip(losses, ("cls", "box"), strict=True):
        assert relative_error(loss, golden.arrays[f"{library}_loss_{name}"]) < tolerance
    for x, expected in zip(by_map, numbered(golden.arrays, f"{library}_grad_map"), strict=True):
        assert relative_error(x, last(expected), 1e-3) < exact
    expected = golden_det.tree(golden.below(f"{library}_grad_w."), np.float64)
    assert jax.tree.structure(by_param) == jax.tree.structure(expected)
    for x, other in zip(jax.tree.leaves(by_param), jax.tree.leaves(expected), strict=True):
        assert relative_error(x, other, 1e-3) < exact


@pytest.mark.parametrize("library", MATCHERS)
def test_proposals(library, dtype):
    """Room for more proposals than the golden ones does not change these."""
    golden = golden_det.load("rpn")
    facts = golden.facts
    selector = ProposalSelector(
        facts["pre_nms"],
        facts["post_nms"] + 7,
        facts["nms_threshold"],
        least_side=0.0 if library == "mm" else 1e-3,
        clamp_below=library == "mm",
    )
    logits, deltas = (
        [
            jnp.asarray(last(x).reshape(len(x), -1, *end), dtype)
            for x in numbered(golden.arrays, name)
        ]
        for name, end in (("logits", ()), ("deltas", (4,)))
    )

    @jax.jit
    def run(logits, deltas, sizes):
        anchors = anchors_of(facts, library, dtype)
        select = functools.partial(jax.vmap(selector, (0, 0, None, 0)), logits, deltas)
        return select(anchors, sizes)

    found = run(logits, deltas, jnp.asarray(facts["sizes"]))
    tolerance = {np.float64: 2e-5 if library == "mm" else 1e-9, np.float32: 1e-3}[dtype]
    for i, expected in enumerate(numbered(golden.arrays, f"{library}_proposals")):
        count = len(expected)
        assert found.valid[i, :count].all()
        np.testing.assert_allclose(found.boxes[i, :count], expected, rtol=0, atol=tolerance)
        if library == "mm":
            scores = golden.arrays[f"mm_scores{i}"]
            np.testing.assert_allclose(found.scores[i, :count], scores, rtol=0, atol=2e-6)
        assert not found.boxes[i][~found.valid[i]].any()


def test_sampled_anchors():
    """Positive samples overlap an object, negative ones do not, and none is in the padding."""
    golden = golden_det.load("rpn")
    sizes = [tuple(size) for size in golden.facts["levels"]]
    objects = truths(golden, np.float32)
    empty = given.truth(np.zeros((0, 4)), np.zeros(0, int), len(objects[0].boxes), np.float32)
    every = jax.tree.map(lambda *x: jnp.stack(x), *objects, empty)
    regions = jnp.asarray([*golden.facts["mm_pad_shapes"], golden.facts["padded"]])

    @jax.jit
    def run(key, truth, regions):
        generator = AnchorGenerator()
        anchors = generator.boxes(sizes)

        def one(key, truth, region):
            inside = generator.valid(sizes, region)
            return sample_anchors(key, anchors, inside, truth, Matcher(), 24, 12)

        return jax.vmap(one)(image_keys(key, jnp.arange(len(regions))), truth, regions)

    found = run(jax.random.key(0), every, regions)
    for i in range(len(objects)):
        assigned = np.where(
            golden.arrays[f"mm_valid{i}"], golden.arrays[f"mm_assigned{i}"] - 1, IGNORED
        )
        chosen = assigned[found.samples.indices[i]]
        np.testing.assert_array_equal(chosen >= 0, found.samples.positive[i])
        assert found.samples.positive[i].any()
    assert found.samples.valid.all()
    assert not found.samples.positive[-1].any()
    assert np.isfinite(found.deltas).all()
