import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests import golden_seg
from vig_jax.config import parse
from vig_jax.errors import ConfigError
from vig_jax.train.optim.schedule import make_schedule

CASES = json.loads((Path(__file__).parent / "golden" / "lr_schedule.json").read_text())

CONFIG = parse(common.get_config()).optimizer


def schedule_of(case):
    """The schedule of a golden case, whose rates are already scaled to its batch."""
    values = common.get_config().optimizer
    values.update(
        base_lr=case["base"],
        warmup_lr=case["warmup"],
        min_lr=case["min"],
        warmup_epochs=float(case["warmup_epochs"]),
    )
    config = parse({**common.get_config().to_dict(), "optimizer": values.to_dict()}).optimizer
    return make_schedule(
        config,
        batch_size=config.lr_batch,
        steps_per_epoch=case["updates_per_epoch"],
        total=case["epochs"] * case["updates_per_epoch"],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['variant']}-{case['epochs']}")
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-6)])
def test_matches_upstream(case, x64, tolerance):
    updates = np.array([int(u) for u in case["lr_of_update"]])
    with jax.enable_x64(x64):
        rates = jax.jit(jax.vmap(schedule_of(case)))(jnp.asarray(updates, jnp.int32))
        assert rates.dtype == (jnp.float64 if x64 else jnp.float32)
    np.testing.assert_allclose(rates, list(case["lr_of_update"].values()), rtol=tolerance)


def poly_cases():
    names = {"mmseg1": "poly", "mmseg0": "poly_from_start"}
    stored = golden_seg.load_json("schedule")
    return [
        pytest.param(names[kind], case, id=f"{kind}-{size}")
        for kind in names
        for size, case in stored.get(kind, {}).items()
    ]


@pytest.mark.parametrize(("kind", "case"), poly_cases())
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 1e-6)])
def test_matches_mmsegmentation(kind, case, x64, tolerance):
    config = dataclasses.replace(
        CONFIG,
        schedule=kind,
        power=case["power"],
        base_lr=case["base_lr"],
        warmup_lr=case["base_lr"] * case["warmup_ratio"],
        min_lr=case["min_lr"],
        warmup_epochs=0.0,
        warmup_steps=case["warmup"],
    )
    batch = config.lr_batch
    schedule = make_schedule(config, batch_size=batch, steps_per_epoch=7, total=case["total"])
    lr = case["lr"]
    expected = lr if isinstance(lr, dict) else dict(enumerate(lr))
    with jax.enable_x64(x64):
        updates = jnp.array([int(update) for update in expected], jnp.int32)
        rates = np.asarray(jax.jit(jax.vmap(schedule))(updates))
    assert rates.dtype == (np.float64 if x64 else np.float32)
    difference = np.abs(rates - list(expected.values()))
    assert difference.max() <= tolerance * case["base_lr"]


@pytest.mark.parametrize("kind", ["poly", "poly_from_start"])
def test_polynomials_without_warmup_and_beyond_the_end(kind):
    config = dataclasses.replace(CONFIG, schedule=kind, warmup_epochs=0.0, min_lr=0.0, power=2.0)
    batch = config.lr_batch
    schedule = make_schedule(config, batch_size=batch, steps_per_epoch=10, total=41)
    rates = np.array([schedule(step) for step in (0, 20, 40, 41, 100)]) / config.base_lr
    last = {"poly": 0.0, "poly_from_start": (1 / 41) ** 2}[kind]
    middle = {"poly": 0.25, "poly_from_start": (21 / 41) ** 2}[kind]
    np.testing.assert_allclose(rates, [1, middle, last, 0, 0], atol=1e-6)


def test_rates_scale_with_the_batch():
    config = parse(common.get_config()).optimizer
    sizes = {"steps_per_epoch": 10, "total": 300}
    one = make_schedule(config, batch_size=512, **sizes)
    two = make_schedule(config, batch_size=1024, **sizes)
    for step in (0, 50, 201, 299):
        np.testing.assert_allclose(two(step), 2 * one(step), rtol=1e-6)


@pytest.mark.parametrize(
    "warmup",
    [{"warmup_epochs": 2.5}, {"warmup_steps": 25}, {"warmup_examples": 25 * 64}],
    ids=lambda warmup: next(iter(warmup)),
)
def test_units_of_warmup(warmup):
    config = dataclasses.replace(CONFIG, **{"warmup_epochs": 0.0} | warmup)
    schedule = make_schedule(config, batch_size=64, steps_per_epoch=10, total=100)
    peak = config.base_lr * 64 / 512
    rates = [float(schedule(step)) for step in (25, 26, 27)]
    assert rates[0] < rates[1] > rates[2]
    np.testing.assert_allclose(rates[1], peak, rtol=1e-6)


def test_two_units_of_warmup():
    config = dataclasses.replace(CONFIG, warmup_steps=25)
    with pytest.raises(ValueError, match=r"optimizer\.warmup_epochs=20\.0 and .*warmup_steps=25"):
        make_schedule(config, batch_size=64, steps_per_epoch=10, total=100)


def test_no_warmup_and_beyond_the_end():
    values = common.get_config().to_dict()
    values["optimizer"]["warmup_epochs"] = 0.0
    config = parse(values).optimizer
    schedule = make_schedule(config, batch_size=512, steps_per_epoch=10, total=20)
    np.testing.assert_allclose(schedule(0), config.base_lr)
    np.testing.assert_allclose(schedule(10_000), config.min_lr)


def test_a_run_within_its_warmup_logs_a_warning(caplog):
    config = dataclasses.replace(CONFIG, warmup_epochs=2.0)
    make_schedule(config, batch_size=64, steps_per_epoch=10, total=20)
    assert not caplog.records
    make_schedule(config, batch_size=64, steps_per_epoch=10, total=19)
    assert "the run, 19 updates, is shorter than its warm-up, 20" in caplog.text


def test_steps():
    """mmdetection's 1x: a warm-up that ends with its last update, a tenth from epochs 8 and 11."""
    config = dataclasses.replace(
        CONFIG, base_lr=1.0, warmup_lr=1e-3, min_lr=0.0, lr_batch=16, warmup_epochs=0.0,
        warmup_steps=1000, schedule="step", milestones=(8, 11),
    )  # fmt: skip
    schedule = make_schedule(config, batch_size=16, steps_per_epoch=500, total=6000)
    updates = [0, 1, 999, 1000, 3999, 4000, 5499, 5500, 5999]
    expected = [1e-3, 1e-3 + 0.999 / 999, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose([schedule(t) for t in updates], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.array(updates)), expected, rtol=1e-6)
    for wrong in ({"milestones": ()}, {"schedule": "cosine"}):
        with pytest.raises(ConfigError, match=r"milestones=.* set the milestones for 'step'"):
            make_schedule(
                dataclasses.replace(config, **wrong), batch_size=16, steps_per_epoch=5, total=60
            )
