"""Non-maximum suppression: exact and greedy, on static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vig_jax.ops import boxes as box_ops


class Kept(NamedTuple):
    """Boxes that survived, by falling score, then padding.

    Attributes:
        indices: numbers of the boxes; 0 in padding.
        valid: which entries are real.
    """

    indices: Int[Array, " K"]
    valid: Bool[Array, " K"]


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    threshold: float,
    *,
    valid: Bool[Array, " N"] | None = None,
    groups: Int[Array, " N"] | None = None,
    limit: int | None = None,
) -> Kept:
    """Returns the boxes that no kept box of a higher score overlaps by more than `threshold`.

    Of equal scores, the box of the lower number is first.

    Args:
        boxes: any boxes.
        scores: higher is better.
        threshold: a box falls if its IoU with a kept one is larger than this.
        valid: which boxes are real. None: all.
        groups: boxes of different groups, such as classes, do not suppress each other.
        limit: largest number of boxes to keep. None: all of them.
    """
    valid = jnp.ones(len(boxes), bool) if valid is None else valid
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    ordered_groups = None if groups is None else groups[order]
    kept = nms_of_sorted(
        boxes[order], threshold, valid=valid[order], groups=ordered_groups, limit=limit
    )
    return Kept(jnp.where(kept.valid, order[kept.indices], 0), kept.valid)


def nms_of_sorted(
    boxes: Float[Array, "N 4"],
    threshold: float,
    *,
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
    limit: int | None = None,
) -> Kept:
    """Returns the result of `nms` for boxes that are in order of score.

    Args:
        boxes: by falling score.
        threshold: see `nms`.
        valid: which boxes are real; others may be anywhere.
        groups: see `nms`.
        limit: see `nms`.
    """
    keep = suppress(boxes, threshold, valid, groups)
    number = jnp.arange(1, (len(boxes) if limit is None else limit) + 1)
    kept = number <= jnp.sum(keep)
    return Kept(jnp.where(kept, jnp.searchsorted(jnp.cumsum(keep), number), 0), kept)


def suppress(
    boxes: Float[Array, "N 4"],
    threshold: float,
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
) -> Bool[Array, " N"]:
    """Returns which boxes greedy non-maximum suppression keeps, for boxes in order of score.

    All pairs are compared once. Then a box is kept if no box before it that is kept suppresses it;
    this is repeated until nothing changes. The only fixed point is the greedy result, because each
    box depends on earlier ones alone. The number of rounds is the length of the longest chain of
    suppressions.

    Args:
        boxes: by falling score.
        threshold: see `nms`.
        valid: which boxes are real.
        groups: see `nms`.
    """
    over = jnp.triu(box_ops.iou(boxes, boxes) > threshold, 1)
    if groups is not None:
        over &= groups[:, None] == groups

    def again(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return state[1]

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = valid & ~jnp.any(over & keep[:, None], axis=0)
        return new, jnp.any(new != keep)

    keep, _ = jax.lax.while_loop(again, step, (valid, jnp.asarray(True)))
    return keep
