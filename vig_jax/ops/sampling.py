"""Sampling: a fixed number of positive and negative candidates per image, drawn at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray


class Samples(NamedTuple):
    """Drawn candidates of one image: positive ones first, then negative ones, then padding.

    Attributes:
        indices: numbers of the candidates; 0 in padding.
        positive: which samples are positive.
        valid: which samples are real.
    """

    indices: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


def image_keys(key: PRNGKeyArray, image_ids: Int[Array, " B"]) -> Array:
    """Returns one key per image, which depends on `key` and the image alone.

    Args:
        key: derived from the seed and the step, such as the key of `Task.loss`.
        image_ids: numbers of the images in the data set.
    """
    return jax.vmap(lambda image: jax.random.fold_in(key, image))(image_ids)


def draw(key: PRNGKeyArray, *counts: int) -> Int[Array, " _"]:
    """Returns a random number for each candidate, for `sample`.

    Args:
        key: of the image.
        counts: number of candidates of each kind, such as boxes and proposals. The numbers of a
            kind do not depend on the other counts, and a larger count only appends numbers.
    """
    keys = jax.random.split(key, len(counts))
    bits = [jax.random.bits(k, (n,), jnp.uint32) for k, n in zip(keys, counts, strict=True)]
    return (jnp.concatenate(bits) >> 1).astype(jnp.int32)


def sample(
    draws: Int[Array, " N"],
    positive: Bool[Array, " N"],
    negative: Bool[Array, " N"],
    count: int,
    most_positive: int,
) -> Samples:
    """Draws up to `most_positive` positive candidates, and negative ones up to `count` in all.

    Every positive candidate has the same chance, and so has every negative one. Source: mmdet's
    `RandomSampler`, which draws with another generator.

    Args:
        draws: random numbers of `draw`.
        positive: which candidates are positive.
        negative: which candidates are negative.
        count: samples per image, S.
        most_positive: limit of the positive ones.
    """
    chosen, is_positive = _lowest(draws, positive, most_positive)
    others, is_negative = _lowest(draws, negative, count)
    positives = jnp.sum(is_positive)
    rank = jnp.arange(count)
    from_others = jnp.clip(rank - positives, 0, len(others) - 1)
    first = rank < positives
    valid = first | is_negative[from_others] & (rank - positives < len(others))
    chosen_index = chosen[jnp.clip(rank, 0, len(chosen) - 1)]
    index = jnp.where(first, chosen_index, others[from_others])
    return Samples(jnp.where(valid, index, 0), first, valid)


def _lowest(draws: jax.Array, allowed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the allowed candidates with the lowest numbers, and which of them are real."""
    values, index = jax.lax.top_k(jnp.where(allowed, -draws, -(2**31)), min(count, len(draws)))
    return index, values > -(2**31)
