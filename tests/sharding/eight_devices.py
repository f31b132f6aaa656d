"""Run by test_mesh.py in a process with eight simulated devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from configs import common
from vig_jax.config import parse
from vig_jax.sharding.kernels import over_batch
from vig_jax.sharding.mesh import DATA_AXIS, check_batch_size, make_mesh, place_batch, replicated
from vig_jax.tasks.classification import make_task
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step


def tiny_config(**data):
    values = common.get_config()
    values.model.update(num_classes=4, img_size=16, patch_size=8, embed_dim=32, depth=1)
    values.model.update(num_heads=1, drop_path_rate=0.2, dtype="float32")
    values.model.gla_implementation = "reference"  # compiles fastest
    values.data.update(image_size=16, mixup_group=4, rand_augment_layers=1)
    values.data.update(data)
    return parse(values)


@functools.cache
def initial_state():
    """In numpy, as steps consume what they are given."""
    config = tiny_config()
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-2)
    return jax.device_get(
        jax.jit(lambda: init_state(make_task(config), optimizer, seed=0, ema=True))()
    )


def losses(mesh, parts=1, updates=3, **data):
    """Some updates on the mesh, drop path and mixing included."""
    config = tiny_config(**data)
    task = make_task(config)
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-2)
    generator = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        state = jax.device_put(initial_state(), replicated(mesh))
        step = make_train_step(
            task,
            optimizer,
            lambda step: 1e-2,
            ema_decay=0.9,
            mesh=mesh,
            accumulation_steps=parts,
        )
        values = []
        for _ in range(updates):
            batch = {
                "image": generator.integers(0, 256, (16, 16, 16, 3), np.uint8),
                "label": generator.integers(0, 4, 16).astype(np.int32),
            }
            state, metrics = step(state, place_batch(batch, mesh))
            values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(values), jax.device_get((state.params, state.ema_params))


def check_steps():
    one_device = jax.make_mesh(
        (1,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    one, one_params = losses(one_device)
    eight, eight_params = losses(make_mesh())
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    # Adam's first updates are the signs of gradients, some of which are all rounding: an update
    # of 1e-2 either way.
    for a, b in zip(jax.tree.leaves(eight_params), jax.tree.leaves(one_params), strict=True):
        assert np.mean(np.abs(a - b)) < 1e-4


def check_accumulation():
    one_device = jax.make_mesh(
        (1,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    # RandAugment compiles long, and is in the other steps.
    options = {"parts": 2, "updates": 1, "rand_augment_layers": 0, "erase_probability": 0.0}
    one, _ = losses(one_device, **options)
    eight, _ = losses(make_mesh(), **options)
    np.testing.assert_allclose(eight, one, rtol=1e-4)


def check_placement():
    mesh = make_mesh()
    rows = place_batch({"x": np.arange(16)}, mesh)["x"]
    assert rows.sharding.spec == PartitionSpec(DATA_AXIS)
    assert [s.data.tolist() for s in rows.addressable_shards][3] == [6, 7]
    with pytest.raises(ValueError, match=r"20 cannot be split over 8 devices.*example 16 or 24"):
        check_batch_size(20, mesh)


def check_over_batch():
    """Each device sees its own rows only, forward and backward."""
    seen = []

    @over_batch
    def kernel(x, y):
        seen.append(x.shape)
        return x * y

    mesh = make_mesh()
    x = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    batch = place_batch({"x": x, "y": x + 1}, mesh)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(kernel(x, y))))(batch["x"], batch["y"])
    np.testing.assert_array_equal(gradient, x + 1)
    assert gradient.sharding.spec[0] == DATA_AXIS
    assert set(seen) == {(2, 3)}
    with jax.set_mesh(mesh):
        jax.jit(kernel)(x[:3], x[:3])  # three rows cannot be shared by eight
    assert seen[-1] == (3, 3)


check_placement()
check_over_batch()
check_steps()
check_accumulation()
print("all equal")
