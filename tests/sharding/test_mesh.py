import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sharding.simulated import run_on_eight_devices
from vig_jax.sharding.kernels import ROWS, shard_kernel
from vig_jax.sharding.mesh import (
    check_batch_size,
    make_mesh,
    place_batch,
    replicated,
    smallest_batch,
)


def test_one_device():
    mesh = make_mesh()
    batch = {"x": np.arange(6).reshape(3, 2)}
    placed = place_batch(batch, mesh)
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert replicated(mesh).is_fully_replicated
    check_batch_size(3, mesh)
    with pytest.raises(ValueError, match="a batch of 0"):
        check_batch_size(0, mesh)


def test_a_kernel_is_called_directly_without_several_devices():
    x = jnp.arange(6.0).reshape(3, 2)

    def primitives():
        double = shard_kernel(lambda x: 2 * x, (ROWS,), ROWS)
        return [str(equation.primitive) for equation in jax.make_jaxpr(double)(x).eqns]

    assert primitives() == ["mul"]
    assert smallest_batch() == 1
    with jax.set_mesh(make_mesh()):
        assert primitives() == ["mul"]
        assert smallest_batch() == 1


@pytest.mark.multidevice
@pytest.mark.parametrize("part", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
def test_eight_devices_compute_what_one_does(part):
    run_on_eight_devices("eight_devices.py", part)
