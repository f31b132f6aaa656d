import jax.numpy as jnp
import pytest

from vig_jax.errors import NonFiniteLossError
from vig_jax.train.logging.metrics import DeviceMetrics


def test_takes_the_newest_values_once():
    metrics = DeviceMetrics()
    for step in range(1, 6):
        metrics.add(step, {"loss": jnp.float32(step)})
    assert metrics.take() == {"train/loss": 5.0}
    assert metrics.take() == {}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_first_bad_step(name, value):
    metrics = DeviceMetrics()
    for step in range(1, 10):
        bad = step >= 4
        values = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
        metrics.add(step, values | ({name: jnp.float32(value)} if bad else {}))
    with pytest.raises(NonFiniteLossError, match=rf"update 4: {name} = {value}"):
        metrics.take()
