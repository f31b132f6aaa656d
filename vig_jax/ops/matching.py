"""Matching: which box of the ground truth an anchor or a proposal belongs to."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vig_jax.ops import boxes

BACKGROUND = -1
IGNORED = -2  # between the thresholds, in an ignored region, or not a candidate


class Matches(NamedTuple):
    """The result for each candidate.

    Attributes:
        assigned: number of its box, or `BACKGROUND`, or `IGNORED`.
        iou: IoU with the box that it overlaps most; 0 without boxes, -1 if it is no candidate or in
            an ignored region.
    """

    assigned: Int[Array, " N"]
    iou: Float[Array, " N"]


@dataclasses.dataclass(frozen=True)
class Matcher:
    """Assigns boxes to candidates by IoU.

    A candidate gets the box that it overlaps most if their IoU is at least `positive`; it is
    background if its highest IoU is below `negative`. In addition, the low-quality rule serves
    boxes that no candidate overlaps well: it makes the candidates with the highest IoU with a box
    positive. Source: mmdet's `MaxIoUAssigner`; torchvision's `Matcher`.

    Attributes:
        positive: least IoU of a positive candidate.
        negative: highest IoU of the background, itself excluded.
        low_quality: "box": the best candidates of a box get this box, a later box wins over an
            earlier one, and over the candidate's own (mmdet). "own": they get the box that they
            themselves overlap most (torchvision, detectron2). "off": no such rule.
        least_low_quality: least IoU of the low-quality rule. torchvision has no such limit: use 0.
            A box that nothing overlaps then makes every untouched candidate positive.
        ignored_iof: candidates are ignored if more than this share of them is in an ignored
            region. Negative: there are no such regions.
    """

    positive: float = 0.7
    negative: float = 0.3
    low_quality: str = "box"
    least_low_quality: float = 0.3
    ignored_iof: float = -1.0

    def __post_init__(self) -> None:
        if self.low_quality not in ("box", "own", "off"):
            raise ValueError(f"low_quality={self.low_quality!r} must be 'box', 'own' or 'off'")

    def __call__(
        self,
        candidates: Float[Array, "N 4"],
        truth: Float[Array, "G 4"],
        valid: Bool[Array, " G"],
        is_candidate: Bool[Array, " N"] | None = None,
        regions: Float[Array, "R 4"] | None = None,
    ) -> Matches:
        """Returns the matches of the candidates of one image.

        Args:
            candidates: anchors or proposals.
            truth: boxes of the ground truth, padded.
            valid: which boxes are real. The others have no influence.
            is_candidate: which candidates take part; the others are `IGNORED`. None: all.
            regions: crowds; see `ignored_iof`. Padded with boxes without area.
        """
        overlap = jnp.where(valid, boxes.iou(candidates, truth), -1)
        excluded = jnp.zeros(len(candidates), bool) if is_candidate is None else ~is_candidate
        if regions is not None and self.ignored_iof >= 0 and len(regions):
            share = jnp.max(boxes.iof(candidates, regions), axis=1)
            excluded |= share > self.ignored_iof
        overlap = jnp.where(excluded[:, None], -1, overlap)
        if not len(truth):
            best = jnp.zeros(len(candidates), overlap.dtype)
            index = jnp.full(len(candidates), BACKGROUND)
        else:
            best = jnp.maximum(jnp.max(overlap, axis=1), 0)
            index = self._assigned(overlap, best, valid)
        return Matches(jnp.where(excluded, IGNORED, index), jnp.where(excluded, -1, best))

    def _assigned(self, overlap: jax.Array, best: jax.Array, valid: jax.Array) -> jax.Array:
        own = jnp.argmax(overlap, axis=1).astype(jnp.int32)
        index = jnp.where(best < self.negative, BACKGROUND, IGNORED)
        index = jnp.where((best >= self.positive) & jnp.any(valid), own, index)
        if self.low_quality == "off":
            return index
        highest = jnp.max(overlap, axis=0)
        # A few units in the last place are allowed: the compiler may compute the overlaps twice,
        # with different rounding, for the maximum and for this comparison.
        enough = highest * (1 - 8 * jnp.finfo(overlap.dtype).eps)
        ties = overlap >= jnp.where(valid & (highest >= self.least_low_quality), enough, 2)
        if self.low_quality == "own":
            return jnp.where(jnp.any(ties, axis=1), own, index)
        latest = jnp.max(jnp.where(ties, jnp.arange(overlap.shape[1]), -1), axis=1)
        return jnp.where(latest >= 0, latest, index)
