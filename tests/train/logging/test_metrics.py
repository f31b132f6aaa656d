import json

import jax.numpy as jnp
import pytest

from vig_jax.errors import NonFiniteLossError
from vig_jax.train.logging.metrics import DeviceMetrics


def test_logs_the_mean_and_the_newest_learning_rate():
    metrics = DeviceMetrics()
    for step in range(1, 6):
        metrics.add(step, {"loss": jnp.float32(step), "lr": jnp.float32(step)})
    metrics.collect()
    assert metrics.mean() == {"train/loss": 3.0, "train/lr": 5.0}
    metrics.collect()
    assert metrics.mean() == {}


def test_a_resumed_run_logs_the_mean_of_the_whole_interval():
    before = DeviceMetrics()
    before.add(1, {"loss": jnp.float32(0.1)})
    before.add(2, {"loss": jnp.float32(0.7)})
    before.collect()
    after = DeviceMetrics(json.loads(json.dumps(before.unlogged)))
    for metrics in (before, after):
        metrics.add(3, {"loss": jnp.float32(0.3)})
        metrics.collect()
    assert after.mean() == before.mean()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_first_bad_step(name, value):
    metrics = DeviceMetrics()
    for step in range(1, 10):
        bad = step >= 4
        values = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
        metrics.add(step, values | ({name: jnp.float32(value)} if bad else {}))
    with pytest.raises(NonFiniteLossError, match=rf"update 4: {name} = {value}"):
        metrics.collect()
