"""Selection of boxes from the predictions of heads: proposals, and detections."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vig_jax.heads.roi import BOX_STDS
from vig_jax.ops import boxes
from vig_jax.ops.nms import nms_of_sorted, suppress


class Proposals(NamedTuple):
    """Boxes that may hold an object, by falling score, padded.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels; 0 in padding.
        scores: probabilities; 0 in padding.
        valid: which proposals are real.
    """

    boxes: Float[Array, "N 4"]
    scores: Float[Array, " N"]
    valid: Bool[Array, " N"]


@dataclasses.dataclass(frozen=True)
class ProposalSelector:
    """Selects proposals from the predictions for anchors. Source: mmdet's `RPNHead`.

    Attributes:
        per_level: best anchors of a level that are considered.
        count: proposals of an image, N.
        nms_threshold: see `vig_jax.ops.nms.nms`; levels are separate.
        least_side: boxes that are not wider and higher are dropped, pixels.
        clamp_below: see `vig_jax.ops.boxes.decode`.
    """

    per_level: int = 2000
    count: int = 1000
    nms_threshold: float = 0.7
    least_side: float = 0.0
    clamp_below: bool = True

    def __call__(
        self,
        logits: Sequence[Float[Array, " _"]],
        deltas: Sequence[Float[Array, "_ 4"]],
        anchors: Sequence[Float[Array, "_ 4"]],
        size: Int[Array, "2"],
    ) -> Proposals:
        """Returns the proposals of one image; they have no gradient.

        Args:
            logits: of each level.
            deltas: of each level.
            anchors: of each level.
            size: height and width of the image without padding, pixels.
        """
        length = min(self.per_level, max(len(x) for x in logits))
        levels = [self._best(*x, length) for x in zip(logits, deltas, anchors, strict=True)]
        best, moves, places = (jnp.stack(x) for x in zip(*levels, strict=True))
        found = boxes.decode(places, moves, clamp_below=self.clamp_below)
        found = boxes.clip(found, size)
        usable = (best > -jnp.inf) & boxes.sides_above(found, self.least_side)
        keep = jax.vmap(suppress, (0, None, 0))(found, self.nms_threshold, usable)
        scores, index = jax.lax.top_k(
            jnp.where(keep, best, -jnp.inf).ravel(), min(self.count, keep.size)
        )
        valid = scores > -jnp.inf
        chosen = jnp.where(valid[:, None], found.reshape(-1, 4)[index], 0)
        result = Proposals(chosen, jnp.where(valid, jax.nn.sigmoid(scores), 0), valid)
        return Proposals(*(_filled(x, self.count) for x in result))

    def _best(
        self, logits: jax.Array, deltas: jax.Array, anchors: jax.Array, length: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns logits, deltas and anchors of the best anchors of a level, padded."""
        logits, deltas = jax.lax.stop_gradient((boxes.wide(logits), boxes.wide(deltas)))
        scores, index = jax.lax.top_k(logits, min(length, len(logits)))
        padding = length - len(index)
        scores = jnp.pad(scores, (0, padding), constant_values=-jnp.inf)
        return scores, _filled(deltas[index], length), _filled(anchors[index], length)


class Detections(NamedTuple):
    """Found objects, by falling score, padded.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels; 0 in padding.
        scores: probabilities; 0 in padding.
        labels: 0 to K - 1; -1 in padding.
        candidates: number of pairs of a proposal and a class above the threshold. If it is larger
            than the limit, the worst ones were left out before the suppression.
    """

    boxes: Float[Array, "D 4"]
    scores: Float[Array, " D"]
    labels: Int[Array, " D"]
    candidates: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class DetectionSelector:
    """Selects detections from the predictions of the box head. Source: mmdet's `multiclass_nms`.

    Every pair of a proposal and a class above the threshold is a candidate with a separate box.

    Attributes:
        score_threshold: least probability, itself excluded.
        nms_threshold: see `vig_jax.ops.nms.nms`; classes are separate.
        count: detections of an image, D.
        most_candidates: limit before the suppression, which compares all pairs of candidates.
        least_side: boxes that are not wider and higher are dropped, pixels. None: no such rule
            (mmdet); torchvision has 0.01.
        clamp_below: see `vig_jax.ops.boxes.decode`.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    count: int = 100
    most_candidates: int = 5000
    least_side: float | None = None
    clamp_below: bool = True

    def __call__(
        self,
        logits: Float[Array, "N classes"],
        deltas: Float[Array, "N K 4"],
        proposals: Float[Array, "N 4"],
        valid: Bool[Array, " N"],
        size: Int[Array, "2"],
    ) -> Detections:
        """Returns the detections of one image.

        Args:
            logits: of the proposals, the background last.
            deltas: for each class.
            proposals: boxes in pixels.
            valid: which proposals are real.
            size: height and width of the image without padding, pixels.
        """
        classes = deltas.shape[1]
        scores = jax.nn.softmax(boxes.wide(logits), axis=-1)[:, :-1]
        above = (scores > self.score_threshold) & valid[:, None]
        best, index = jax.lax.top_k(
            jnp.where(above, scores, -jnp.inf).ravel(), min(self.most_candidates, scores.size)
        )
        row, label = index // classes, index % classes
        moves = deltas.reshape(-1, 4)[index]
        found = boxes.decode(proposals[row], moves, BOX_STDS, clamp_below=self.clamp_below)
        found = boxes.clip(found, size)
        usable = best > -jnp.inf
        if self.least_side is not None:
            usable &= boxes.sides_above(found, self.least_side)
        limit = min(self.count, len(best))
        kept = nms_of_sorted(found, self.nms_threshold, valid=usable, groups=label, limit=limit)
        chosen = (
            jnp.where(kept.valid[:, None], found[kept.indices], 0),
            jnp.where(kept.valid, best[kept.indices], 0),
            jnp.where(kept.valid, label[kept.indices] + 1, 0),
        )
        chosen_boxes, chosen_scores, labels = (_filled(x, self.count) for x in chosen)
        return Detections(chosen_boxes, chosen_scores, labels - 1, jnp.sum(above, dtype=jnp.int32))


def _filled(x: jax.Array, length: int) -> jax.Array:
    """Returns rows with zeros below them, `length` in all."""
    return jnp.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))
