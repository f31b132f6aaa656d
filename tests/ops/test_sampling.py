import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.ops.sampling import draw, image_keys, sample

RULE = next(key for key in golden_det.facts("rules") if key.startswith("sampled"))
QUOTAS = {"rpn": (256, 128), "roi": (512, 128)}


def run(key, positive, negative, count, most_positive, parts):
    return sample(draw(key, *parts), positive, negative, count, most_positive)


jitted = jax.jit(run, static_argnums=(3, 4, 5))


@pytest.mark.parametrize("kind", QUOTAS)
def test_numbers_of_samples(kind):
    """All cases share the numbers of candidates, so that one program serves them."""
    cases = golden_det.facts("rules")[RULE]
    length = max(case["positives"] + case["negatives"] for case in cases)
    for case in cases:
        kinds = np.full(length, 2)
        kinds[: case["positives"]] = 1
        kinds[case["positives"] : case["positives"] + case["negatives"]] = 0
        kinds = np.random.default_rng(0).permutation(kinds)
        samples = jitted(
            jax.random.key(5), jnp.asarray(kinds == 1), jnp.asarray(kinds == 0), *QUOTAS[kind],
            (length,),
        )  # fmt: skip
        positives, negatives = case[kind]
        chosen = np.asarray(samples.indices)[np.asarray(samples.valid)]
        assert len(np.unique(chosen)) == len(chosen) == positives + negatives
        assert (kinds[chosen[:positives]] == 1).all()
        assert (kinds[chosen[positives:]] == 0).all()
        np.testing.assert_array_equal(samples.positive, np.arange(QUOTAS[kind][0]) < positives)


def test_samples_depend_on_image_and_step_not_on_the_batch():
    ids = jnp.array([7, 3, 1_000_003])
    step = jax.random.fold_in(jax.random.key(0), 11)
    keys = image_keys(step, ids)
    alone = image_keys(step, ids[1:2])
    positive, negative = jnp.arange(40) < 20, jnp.arange(40) >= 20
    draws = [jitted(key, positive, negative, 16, 8, (40,)).indices for key in keys]
    np.testing.assert_array_equal(
        draws[1], jitted(alone[0], positive, negative, 16, 8, (40,)).indices
    )
    assert not np.array_equal(draws[0], draws[1])
    other = image_keys(jax.random.fold_in(jax.random.key(0), 12), ids)
    again = jitted(other[1], positive, negative, 16, 8, (40,)).indices
    assert not np.array_equal(draws[1], again)


def test_padding_changes_nothing():
    """Two kinds of candidates, boxes and proposals, both padded to twice the length."""
    key = jax.random.key(3)
    kinds = np.array([1, 1, 0, 2, 1, 0, 0, 2, 0, 1])
    longer = np.concatenate([kinds[:4], [2] * 4, kinds[4:], [2] * 6])
    where = np.concatenate([np.arange(4), np.arange(8, 14)])
    short = jitted(key, jnp.asarray(kinds == 1), jnp.asarray(kinds == 0), 6, 3, (4, 6))
    long = jitted(key, jnp.asarray(longer == 1), jnp.asarray(longer == 0), 6, 3, (8, 12))
    np.testing.assert_array_equal(short.valid, long.valid)
    np.testing.assert_array_equal(where[short.indices], long.indices)


def test_every_candidate_has_the_same_chance():
    kinds = jnp.arange(8)

    def once(key):
        drawn = sample(draw(key, 8), kinds < 5, kinds >= 5, 4, 2)
        return jnp.zeros(8).at[drawn.indices].add(drawn.valid)

    share = jnp.mean(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(1), 4000)), 0)
    np.testing.assert_allclose(share, [2 / 5] * 5 + [2 / 3] * 3, atol=0.03)
