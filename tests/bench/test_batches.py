"""Random batches of detection."""

import jax
import numpy as np

from vig_jax.bench import batches
from vig_jax.bench.programs import benchmark_config
from vig_jax.tasks.registry import make_task

SIZE = 320, 512


def test_objects_of_a_batch():
    config = benchmark_config("vig_h_t", image_size=SIZE, batch_size=3, task="detection")
    spec = make_task(config, {}).task.batch_spec
    made = batches.random_batch(config, spec, 1)
    shapes = {name: (3, *one.shape) for name, one in spec.items()}
    assert {name: x.shape for name, x in made.items()} == shapes
    assert {name: x.dtype for name, x in made.items()} == {k: x.dtype for k, x in spec.items()}
    assert made["image"].shape == (3, *SIZE, 3)
    assert made["size"].tolist() == [list(SIZE)] * 3
    assert made["image_id"].tolist() == [3, 4, 5]
    real, n = jax.device_get(made), batches.OBJECTS
    assert real["valid"].sum(axis=1).tolist() == [n] * 3
    assert real["valid"][:, :n].all()
    assert not real["boxes"][:, n:].any()
    assert not real["masks"][:, n:].any()
    left, top, right, bottom = np.moveaxis(real["boxes"][:, :n], -1, 0)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= SIZE[1]).all()
    assert (bottom <= SIZE[0]).all()
    areas = (right - left) * (bottom - top)
    assert areas.max() > 20 * areas.min() > 0  # of mixed sizes
    assert len(np.unique(real["labels"][:, :n])) > n
    share = (real["masks"][:, :n] == 255).mean()
    assert abs(share - np.pi / 4) < 0.01


def test_batches_differ_by_their_seed():
    config = benchmark_config("vig_h_t", image_size=(32, 64), batch_size=1, task="detection")
    spec = make_task(config, {}).task.batch_spec
    one, same, other = (jax.device_get(batches.random_batch(config, spec, i)) for i in (0, 0, 1))
    for name in ("image", "boxes", "image_id"):
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])
