import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.config import DetectionConfig, named, parse, recipes, to_dict
from vig_jax.errors import ConfigError
from vig_jax.sharding.mesh import check_batch_size, make_mesh
from vig_jax.tasks.registry import make_task
from vig_jax.train.intervals import Intervals
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.optim.schedule import make_schedule

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


# The sizes of a family differ in widths and rates: the smallest is traced.
TRACED = [name for name in PAGES if not name.endswith(("_s", "_b"))]


def made(name):
    """Returns the settings, the task and the optimizer of a page."""
    config = parse(load(name).get_config())
    if config.model.num_classes is None:
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, num_classes=10)
        )
    # Models of full depth are in the models' tests. They are traced for long.
    shallow = {"depths": (1, 1, 1, 1)} if "_h_" in config.model.name else {"depth": 1}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **shallow))
    task = make_task(config, {}).task
    total = Intervals.from_config(config.train, 10).total
    assert total == config.train.steps + 10 * config.train.epochs > 0
    schedule = make_schedule(
        config.optimizer, batch_size=config.train.batch_size, steps_per_epoch=10, total=total
    )
    return config, task, make_optimizer(config.optimizer, schedule, task.model)


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    config, task, _ = made(name)
    assert task.model.num_classes > 0
    check_batch_size(config.train.batch_size, make_mesh())


@pytest.mark.parametrize("name", TRACED)
def test_traces(name):
    config, task, optimizer = made(name)
    variables = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    jax.eval_shape(optimizer.init, variables["params"])
    batch = config.train.batch_size
    shapes = {
        name: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype)
        for name, spec in task.batch_spec.items()
    }
    loss, _ = jax.eval_shape(task.loss, variables, shapes, jax.random.PRNGKey(0))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", PAGES)
def test_page_documents_its_command(name):
    assert f"--config=configs/{name}.py" in load(name).__doc__


def test_every_config_of_the_package_has_a_page():
    assert sorted(named.names()) == PAGES
    for name in PAGES:
        assert load(name).get_config().to_dict() == named.get_config(name).to_dict()
    with pytest.raises(ConfigError, match="'vig_c' is not a config; did you mean 'vig_t'"):
        named.get_config("vig_c")


@pytest.mark.parametrize("name", PAPER)
def test_nothing_else_in_the_paper_recipe(name):
    """All values of data, optimizer and run that change what is computed."""
    config = to_dict(parse(load(name).get_config()))
    rate, decay, drop_path = PAPER[name]
    assert config["model"] == dict.fromkeys(config["model"]) | {
        "name": name,
        "drop_path_rate": drop_path,
        "dtype": "bfloat16",
        "remat": False,
    }
    assert config["data"] == config["data"] | {
        "image_size": 224,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop": "random_resized",
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "crop_pct": 0.875,
        "rand_augment_layers": 2,
        "rand_augment_magnitude": 9.0,
        "rand_augment_std": 0.5,
        "color_jitter": 0.0,  # set to 0.4 upstream, and not applied beside RandAugment
        "erase_probability": 0.25,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "mixup_group": 64 if name == "vig_b" else 128,  # images per GPU upstream
    }
    assert config["optimizer"] == {
        "base_lr": pytest.approx(rate / 2),
        "warmup_lr": 5e-7,
        "min_lr": 5e-6,
        "lr_batch": 512,
        "warmup_epochs": 20.0,
        "warmup_steps": 0,
        "warmup_examples": 0,
        "schedule": "cosine",
        "power": 1.0,
        "milestones": (),
        "weight_decay": decay,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 5.0,
        "layer_decay": 1.0,
        "freeze": "",
    }
    assert config["train"] == config["train"] | {
        "batch_size": 1024,
        "accumulation_steps": 1,
        "epochs": 300,
        "steps": 0,
        "examples": 0,
        "label_smoothing": 0.1,
        "ema_decay": 0.9999,
        "eval_every_epochs": 1,
    }
    assert config["init_weights"] is None


# Rate and weight decay for 16 images, layer decay (BEiT, Vim; Swin, VMamba), drop path.
ADE20K = {
    "vig_t": (1e-4, 0.05, 0.9, 0.1),
    "vig_s": (1e-4, 0.05, 0.9, 0.2),
    "vig_b": (1e-4, 0.05, 0.9, 0.3),
    "vig_h_t": (6e-5, 0.01, 1.0, 0.2),
    "vig_h_s": (6e-5, 0.01, 1.0, 0.3),
    "vig_h_b": (6e-5, 0.01, 1.0, 0.6),
}


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k_recipe(name):
    config = parse(load(f"ade20k_{name}").get_config())
    optimizer, train, task = config.optimizer, config.train, config.task
    rate, decay, layer_decay, drop_path = ADE20K[name]
    assert (config.model.name, config.model.drop_path_rate) == (name, drop_path)
    assert optimizer.base_lr * train.batch_size / optimizer.lr_batch == pytest.approx(rate)
    assert optimizer.warmup_lr == pytest.approx(1e-6 * optimizer.base_lr)
    assert (optimizer.weight_decay, optimizer.layer_decay) == (decay, layer_decay)
    assert (optimizer.schedule, optimizer.power, optimizer.min_lr) == ("poly", 1.0, 0.0)
    assert (optimizer.warmup_steps, optimizer.warmup_epochs, optimizer.clip_norm) == (1500, 0, 0)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert (train.batch_size, train.steps, train.epochs, train.ema_decay) == (16, 160_000, 0, 0)
    assert (config.data.source, config.data.image_size, config.data.hflip) == ("ade20k", 512, 0.5)
    assert (task.channels, task.aux_channels, task.aux_weight, task.dropout) == (512, 256, 0.4, 0.1)
    assert (task.resize_scale, task.resize_ratio) == ((2048, 512), (0.5, 2.0))
    assert (task.crop_max_share, task.photometric, task.reduce_zero_label) == (0.75, True, True)
    assert (task.eval_mode, task.eval_stride, task.eval_scales) == ("slide", 341, (1.0,))
    assert (task.avg_non_ignore, task.norm_last, task.eval_flip) == (False, False, False)
    pixels = 255 * np.array([config.data.mean, config.data.std])  # as mmsegmentation has them
    np.testing.assert_allclose(pixels, [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])


# Rate and weight decay for 16 images, layer decay, warm-up, drop path (Vision-RWKV; Swin, VMamba).
COCO = {
    "vig_t": (2e-4, 0.01, 0.85, 500, 0.1),
    "vig_s": (1e-4, 0.05, 0.85, 500, 0.2),
    "vig_b": (1e-4, 0.05, 0.85, 500, 0.3),
    "vig_h_t": (1e-4, 0.05, 1.0, 1000, 0.2),
    "vig_h_s": (1e-4, 0.05, 1.0, 1000, 0.3),
    "vig_h_b": (1e-4, 0.05, 1.0, 1000, 0.6),
}


@pytest.mark.parametrize("name", COCO)
def test_coco_recipe(name):
    config = parse(load(f"coco_{name}").get_config())
    optimizer, train, task = config.optimizer, config.train, config.task
    rate, decay, layer_decay, warmup, drop_path = COCO[name]
    assert (config.model.name, config.model.drop_path_rate) == (name, drop_path)
    assert optimizer.base_lr * train.batch_size / optimizer.lr_batch == pytest.approx(rate)
    assert optimizer.warmup_lr == pytest.approx(1e-3 * optimizer.base_lr)
    assert (optimizer.weight_decay, optimizer.layer_decay) == (decay, layer_decay)
    assert (optimizer.schedule, optimizer.milestones) == ("step", (8, 11))
    assert (optimizer.warmup_steps, optimizer.warmup_epochs) == (warmup, 0)
    assert (optimizer.clip_norm, optimizer.b1, optimizer.b2) == (0, 0.9, 0.999)
    assert (train.batch_size, train.epochs, train.steps, train.ema_decay) == (16, 12, 0, 0)
    assert (config.data.source, config.data.hflip) == ("coco", 0.5)
    assert task == DetectionConfig(name="detection")  # whose defaults are mmdetection's


def test_coco_with_many_sizes():
    config = parse(recipes.coco("vig_h_t", multi_scale=True))
    assert (config.train.epochs, config.optimizer.milestones) == (36, (27, 33))
    assert config.task == DetectionConfig(name="detection", multi_scale="resize_crop")


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
