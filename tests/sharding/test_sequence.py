"""Images whose rows are split over devices: simulated ones, and two GPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from kernels_pallas.testing import rms_relative_error
from tests.sharding.simulated import run_on_eight_devices
from vig_jax.config import MeshConfig
from vig_jax.sharding.mesh import images_sharded, make_mesh, replicated
from vig_jax.sharding.sequence import check_rows, exchange_states, row_devices

on_two_gpus = pytest.mark.skipif(
    jax.default_backend() != "gpu" or jax.local_device_count() < 2, reason="needs two CUDA GPUs"
)


def test_one_device_has_whole_images():
    assert row_devices() == 1
    assert exchange_states() is None
    with jax.set_mesh(make_mesh()):
        assert row_devices() == 1
        check_rows(17, 32)


@pytest.mark.multidevice
@pytest.mark.parametrize("part", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
def test_rows_on_eight_devices(part):
    run_on_eight_devices("sequence_devices.py", part)


@on_two_gpus
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("vig_t", {"depth": 2}), ("vig_h_t", {"depths": (1, 1, 1, 1)})],
)
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_two_gpus_compute_what_one_does(name, sizes, dtype, allowed):
    """Maps, and the gradients of all parameters, of an image of 512 x 384 pixels.

    In bfloat16 the gradient of a bias before a norm is a sum of numbers that nearly cancel.
    Simulated devices differed by 0.055 there, and by at most 0.016 elsewhere.
    """
    model = vig_jax.create_model(name, 10, dtype=jnp.dtype(dtype), **sizes)
    images = np.random.default_rng(0).standard_normal((1, 512, 384, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def gradients(variables, images):
        def loss(variables):
            logits = model.apply(variables, images)
            return jnp.sum(jnp.square(logits)), logits

        return jax.grad(loss, has_aux=True)(variables)

    features = functools.partial(model.apply, method="features")

    def both(variables, images):
        return features(variables, images), gradients(variables, images)

    expected = jax.device_get(jax.jit(both)(variables, images))
    mesh = make_mesh(jax.devices()[:2], MeshConfig(sequence=2))
    placed = (
        jax.device_put(variables, replicated(mesh)),
        jax.device_put(images, images_sharded(mesh)),
    )
    with jax.set_mesh(mesh):
        actual = jax.device_get(jax.jit(lambda *arrays: both(*arrays))(*placed))
    for mine, right in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert rms_relative_error(mine, right) <= allowed
