"""Drawn samples of an image and what they are trained towards."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vig_jax.heads.roi import BOX_STDS
from vig_jax.ops import boxes
from vig_jax.ops.matching import BACKGROUND, Matcher
from vig_jax.ops.sampling import Samples, draw, sample


class Truth(NamedTuple):
    """The objects of an image, padded.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels.
        labels: 0 to K - 1.
        valid: which objects are real.
    """

    boxes: Float[Array, "G 4"]
    labels: Int[Array, " G"]
    valid: Bool[Array, " G"]


class AnchorTargets(NamedTuple):
    """The sampled anchors of an image and the deltas of the boxes that they belong to.

    Attributes:
        samples: numbers of anchors; which are positive; which are real.
        deltas: arbitrary where a sample is not positive.
    """

    samples: Samples
    deltas: Float[Array, "S 4"]


class RoITargets(NamedTuple):
    """The sampled regions of an image, positive ones first.

    Attributes:
        rois: the regions.
        objects: the object of each region; arbitrary where a sample is not positive.
        labels: 0 to K - 1, or K for background.
        deltas: arbitrary where a sample is not positive.
        positive: which samples are positive.
        valid: which samples are real.
    """

    rois: Float[Array, "S 4"]
    objects: Int[Array, " S"]
    labels: Int[Array, " S"]
    deltas: Float[Array, "S 4"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


def sample_anchors(
    key: PRNGKeyArray,
    anchors: Sequence[Float[Array, "_ 4"]],
    inside: Sequence[Bool[Array, " _"]],
    truth: Truth,
    matcher: Matcher,
    count: int = 256,
    most_positive: int = 128,
) -> AnchorTargets:
    """Draws anchors for the loss of the region proposal network.

    Args:
        key: of the image; see `vig_jax.ops.sampling.image_keys`.
        anchors: of each level.
        inside: which anchors of each level take part; see `AnchorGenerator.valid`.
        truth: the objects.
        matcher: assigns objects to anchors.
        count: samples per image.
        most_positive: limit of the positive ones.
    """
    every = jnp.concatenate(anchors)
    matches = matcher(every, truth.boxes, truth.valid, jnp.concatenate(inside))
    samples = sample(
        draw(key, *(len(x) for x in anchors)),
        matches.assigned >= 0,
        matches.assigned == BACKGROUND,
        count,
        most_positive,
    )
    return anchor_targets(every, matches.assigned, samples, truth)


def anchor_targets(
    anchors: Float[Array, "N 4"], assigned: Int[Array, " N"], samples: Samples, truth: Truth
) -> AnchorTargets:
    """Returns the targets of given samples.

    Args:
        anchors: of all levels.
        assigned: the object of each anchor, as in `Matches`.
        samples: the drawn anchors.
        truth: the objects.
    """
    objects = jnp.maximum(assigned[samples.indices], 0)
    return AnchorTargets(samples, boxes.encode(anchors[samples.indices], truth.boxes[objects]))


def sample_rois(
    key: PRNGKeyArray,
    proposals: Float[Array, "N 4"],
    is_proposal: Bool[Array, " N"],
    truth: Truth,
    matcher: Matcher,
    background: int,
    count: int = 512,
    most_positive: int = 128,
) -> RoITargets:
    """Draws regions for the losses of box and mask head from the objects and the proposals.

    Args:
        key: of the image; see `vig_jax.ops.sampling.image_keys`.
        proposals: of the region proposal network, padded.
        is_proposal: which proposals are real.
        truth: the objects. Their boxes are candidates too, before the proposals.
        matcher: assigns objects to candidates.
        background: label of the background, the number of classes.
        count: samples per image.
        most_positive: limit of the positive ones.
    """
    candidates = jnp.concatenate([truth.boxes.astype(proposals.dtype), proposals])
    real = jnp.concatenate([truth.valid, is_proposal])
    matches = matcher(candidates, truth.boxes, truth.valid, real)
    samples = sample(
        draw(key, len(truth.boxes), len(proposals)),
        matches.assigned >= 0,
        matches.assigned == BACKGROUND,
        count,
        most_positive,
    )
    return roi_targets(candidates, matches.assigned, samples, truth, background)


def roi_targets(
    candidates: Float[Array, "N 4"],
    assigned: Int[Array, " N"],
    samples: Samples,
    truth: Truth,
    background: int,
) -> RoITargets:
    """Returns the targets of given samples.

    Args:
        candidates: boxes of the objects, then proposals.
        assigned: the object of each candidate, as in `Matches`.
        samples: the drawn candidates.
        truth: the objects.
        background: label of the background, the number of classes.
    """
    rois = candidates[samples.indices]
    objects = jnp.maximum(assigned[samples.indices], 0)
    return RoITargets(
        rois,
        objects,
        jnp.where(samples.positive, truth.labels[objects], background),
        boxes.encode(rois, truth.boxes[objects], BOX_STDS),
        samples.positive,
        samples.valid,
    )
