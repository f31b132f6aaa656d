from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.augment import mixup
from vig_jax.augment.mixup import Mix, cutmix_box, mix_targets

GOLDEN = Path(__file__).parent / "golden" / "soft_targets.npz"
KEY = jax.random.key(0)

# As in training; op by op they are slow.
SETTINGS = ("mixup_alpha", "cutmix_alpha", "group")
draw = jax.jit(mixup.draw, static_argnames=("batch", "height", "width", *SETTINGS))
mix_images = jax.jit(mixup.mix_images, static_argnames=SETTINGS)
apply = jax.jit(mixup.apply)


def many(mixup_alpha, cutmix_alpha, groups=20_000):
    mix = draw(
        KEY,
        2 * groups,
        224,
        224,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        group=2,
    )
    return jax.tree.map(np.asarray, mix)


@pytest.mark.parametrize(
    ("mixup_alpha", "cutmix_alpha", "mean", "std"),
    [
        (0.0, 1.0, 0.682, 0.189),  # after clipping the boxes; 0.5, 0.289 before
        (0.8, 0.0, 0.5, 0.310),  # Beta(a, a) has variance 1 / (4 (2a + 1))
        (0.8, 1.0, 0.591, 0.272),  # half of each
    ],
)
def test_distribution_of_lambda(mixup_alpha, cutmix_alpha, mean, std):
    mix = many(mixup_alpha, cutmix_alpha)
    assert mix.lam.shape == (20_000,)
    assert mix.lam.mean() == pytest.approx(mean, abs=0.008)
    assert mix.lam.std() == pytest.approx(std, abs=0.006)
    is_cutmix = mix.blend == 1
    expected = 0.5 if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0)
    assert is_cutmix.mean() == pytest.approx(expected, abs=0.02)


def test_lambda_is_the_share_of_the_pixels():
    mix = many(0.8, 1.0)
    top, bottom, left, right = mix.box.T
    assert ((top >= 0) & (top <= bottom) & (bottom <= 224)).all()
    assert ((left >= 0) & (left <= right) & (right <= 224)).all()
    pasted = (bottom - top) * (right - left) / 224**2
    np.testing.assert_allclose(mix.lam, np.where(mix.blend == 1, 1 - pasted, mix.blend), rtol=1e-6)
    assert (pasted[mix.blend < 1] == 0).all()


def test_box_follows_timm():
    # cut = int(side * sqrt(1 - lam)); centre -+ cut // 2, clipped to the image.
    lam = jnp.array([0.75, 0.0, 1.0, 0.36])
    y, x = jnp.array([0.5, 0.0, 0.5, 0.999]), jnp.array([0.25, 0.5, 0.5, 0.0])
    box = cutmix_box(lam, y, x, 20, 31)
    assert box.tolist() == [[5, 15, 0, 14], [0, 10, 0, 30], [10, 10, 15, 15], [11, 20, 0, 12]]


def test_mixup_blends_with_the_reversed_group():
    images = jax.random.normal(KEY, (8, 5, 6, 3))
    lam = jnp.array([0.25, 0.9])
    mixed = apply(images, Mix(lam, lam, jnp.zeros((2, 4), jnp.int32)))
    for group, rows in enumerate((range(4), range(4, 8))):
        for row, partner in zip(rows, reversed(rows), strict=True):
            share = float(lam[group])
            expected = images[row] * share + images[partner] * (1 - share)
            np.testing.assert_allclose(mixed[row], expected, atol=1e-6)


def test_cutmix_pastes_exactly_the_box():
    images = jax.random.normal(KEY, (4, 8, 9, 3))
    mixed = apply(images, Mix(jnp.ones(1), jnp.ones(1), jnp.array([[2, 5, 1, 9]])))
    expected = np.array(images)
    expected[:, 2:5, 1:9] = np.asarray(images)[::-1, 2:5, 1:9]
    np.testing.assert_array_equal(mixed, expected)


def test_images_and_labels_are_mixed_alike():
    # Images of one colour each: the weight of the own colour must be lambda.
    hues = jnp.arange(1.0, 13.0)
    images = jnp.broadcast_to(hues[:, None, None, None], (12, 16, 16, 3))
    seen = set()
    for seed in range(8):
        mixed, lam = mix_images(
            jax.random.key(seed), images, mixup_alpha=0.8, cutmix_alpha=1.0, group=4
        )
        assert lam.shape == (3,)
        share = jnp.repeat(lam, 4)
        partner = hues.reshape(3, 4)[:, ::-1].reshape(12)
        mean = mixed.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(mean, hues * share + partner * (1 - share), rtol=1e-5)
        targets = mix_targets(jnp.arange(12), lam, 12, 0.0)
        np.testing.assert_allclose(targets @ hues, mean, rtol=1e-5)
        seen |= set(lam.tolist())
    assert len(seen) > 16


def test_mixing_keeps_the_type_and_depends_on_the_key_alone():
    images = jax.random.normal(KEY, (8, 6, 6, 3), jnp.bfloat16)
    settings = {
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "group": 128,
    }  # more rows than the batch has
    mixed, lam = mix_images(KEY, images, **settings)
    assert mixed.dtype == jnp.bfloat16
    assert lam.shape == (1,)
    np.testing.assert_array_equal(lam, mix_images(KEY, images, **settings)[1])
    assert not np.array_equal(lam, mix_images(jax.random.key(1), images, **settings)[1])


def test_without_alphas_nothing_is_mixed():
    images = jax.random.normal(KEY, (3, 4, 4, 3))  # an odd batch is allowed
    mixed, lam = mix_images(KEY, images, mixup_alpha=0.0, cutmix_alpha=0.0, group=128)
    np.testing.assert_array_equal(mixed, images)
    targets = mix_targets(jnp.array([0, 1, 2]), lam, 3, 0.0)
    np.testing.assert_array_equal(targets, np.eye(3))


@pytest.mark.parametrize(("batch", "group"), [(192, 128), (10, 5), (7, 128), (1, 2)])
def test_groups_must_fill_the_batch_in_pairs(batch, group):
    images = jnp.zeros((batch, 2, 2, 3))
    with pytest.raises(ValueError, match=r"config\.data\.mixup_group=.* must be even and divide"):
        mix_images(KEY, images, mixup_alpha=0.8, cutmix_alpha=0.0, group=group)


def test_alphas_must_not_be_negative():
    with pytest.raises(ValueError, match="both must be at least 0"):
        mix_images(KEY, jnp.zeros((2, 2, 2, 3)), mixup_alpha=-1.0, cutmix_alpha=0.5, group=2)


@pytest.mark.parametrize("lam", ["1.0", "0.3", "0.77"])
def test_targets_match_timm(lam):
    golden = np.load(GOLDEN)
    targets = mix_targets(jnp.asarray(golden["target"]), jnp.array([float(lam)]), 11, 0.1)
    np.testing.assert_allclose(targets, golden[f"soft_target.{lam}"], rtol=0, atol=2e-7)


def test_targets_of_several_groups():
    labels = jnp.array([0, 1, 2, 3])
    targets = mix_targets(labels, jnp.array([1.0, 0.75]), 4, 0.0)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.75, 0.25], [0, 0, 0.25, 0.75]]
    np.testing.assert_array_equal(targets, expected)
