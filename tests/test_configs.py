import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vig_jax.config import parse
from vig_jax.sharding.mesh import check_batch_size, make_mesh
from vig_jax.tasks.classification import make_task
from vig_jax.train.calendar import Calendar
from vig_jax.train.optimizer import make_optimizer
from vig_jax.train.schedule import warmup_cosine

NAMES = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py"))
PAGES = [name for name in NAMES if name != "common"]
# Base rate at the total batch of 1024, weight decay, drop path (hustvl/ViG configs/*.yaml).
PAPER = {
    "vig_t": (2e-3, 0.05, 0.0),
    "vig_s": (1e-3, 0.1, 0.2),
    "vig_b": (2e-3, 0.05, 0.5),
    "vig_h_t": (1.6e-3, 0.05, 0.2),
    "vig_h_s": (1e-3, 0.05, 0.3),
    "vig_h_b": (1e-3, 0.05, 0.6),
}


def load(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    config = parse(load(name).get_config())
    if config.model.num_classes is None:
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, num_classes=10)
        )
    task = make_task(config)
    params = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    schedule = warmup_cosine(
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=10,
        total=10 * config.train.epochs,
    )
    jax.eval_shape(make_optimizer(config.optimizer, schedule).init, params)
    assert Calendar.of(config.train, 10).total == 10 * config.train.epochs
    check_batch_size(config.train.batch_size, make_mesh())
    side, batch = config.data.image_size, config.train.batch_size
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    loss = jax.eval_shape(task.loss, params, shapes, jax.random.PRNGKey(0))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", PAGES)
def test_page_tells_its_command(name):
    assert f"--config=configs/{name}.py" in load(name).__doc__


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipe(name):
    config = parse(load(name).get_config())
    rate, decay, drop_path = PAPER[name]
    optimizer, train = config.optimizer, config.train
    scale = train.batch_size / optimizer.lr_batch
    assert (train.batch_size, train.epochs, optimizer.warmup_epochs) == (1024, 300, 20)
    assert optimizer.base_lr * scale == pytest.approx(rate)
    assert optimizer.warmup_lr * scale == pytest.approx(1e-6)
    assert optimizer.min_lr * scale == pytest.approx(1e-5)
    assert (optimizer.weight_decay, config.model.drop_path_rate) == (decay, drop_path)
    assert (train.label_smoothing, train.ema_decay, optimizer.clip_norm) == (0.1, 0.9999, 5.0)
    assert (config.data.mixup_alpha, config.data.cutmix_alpha) == (0.8, 1.0)
    assert (config.data.image_size, config.data.crop_pct, config.data.hflip) == (224, 0.875, 0.5)
