import math
import re
import typing

import pytest

from configs import common
from vig_jax.config import (
    DataConfig,
    DetectionConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    parse,
    to_dict,
)


def test_defaults_parse_and_survive_json():
    config = parse(common.get_config())
    assert isinstance(config, RunConfig)
    assert config.model.num_classes is None  # a placeholder
    assert config.data.crop_scale == (0.08, 1.0)
    assert parse(to_dict(config)) == config


def test_widens_int_to_float_and_list_to_tuple_only():
    values = common.get_config().to_dict()
    values["optimizer"]["warmup_epochs"] = 3
    values["data"]["mean"] = [0, 0.5, 1]
    config = parse(values)
    assert isinstance(config.optimizer, OptimizerConfig)
    assert isinstance(config.optimizer.warmup_epochs, float)
    assert config.data.mean == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(("value", "parsed"), [(3, 3), ([3, 6], (3, 6)), (None, None)])
def test_heads_are_one_number_or_one_per_stage(value, parsed):
    values = common.get_config()
    values.model.num_heads = value
    assert parse(values).model.num_heads == parsed


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("optimizer", "base_lrr", 1.0, r"config\.optimizer\.base_lrr .*mean .*\.base_lr'\?"),
        ("train", "zzz", 1, r"config\.train\.zzz is not a setting; known: .*batch_size"),
        ("train", "epochs", 2.5, r"config\.train\.epochs is 2\.5 \(float\).*int"),
        ("train", "epochs", True, r"config\.train\.epochs is True"),
        ("train", "epochs", None, r"config\.train\.epochs is None"),
        ("model", "dtype", "float16", r"config\.model\.dtype is 'float16'.*'bfloat16'"),
        ("model", "name", 3, r"config\.model\.name is 3 \(int\)"),
        ("model", "remat", 1, r"config\.model\.remat is 1 \(int\)"),
        ("model", "num_heads", "3", r"config\.model\.num_heads is '3' \(str\)"),
        ("model", "num_heads", (3, "6"), r"config\.model\.num_heads\[1\] is '6'"),
        ("model", "depths", 2, r"config\.model\.depths is 2; it must be a sequence"),
        ("data", "mean", (0.5,), r"config\.data\.mean .*3 numbers"),
        ("data", "mean", (0.5, "x", 0.5), r"config\.data\.mean\[1\] is 'x'"),
        ("data", "crop_scale", 0.5, r"config\.data\.crop_scale .*2 numbers"),
        ("data", "crop_scale", (0.5, 0.2), r"crop_scale is \(0\.5, 0\.2\).*first .* not exceed"),
        ("data", "crop_scale", (0.0, 0.2), r"crop_scale\[0\] is 0\.0; .* above 0 and at most 1"),
        ("data", "std", (0.2, 0.0, 0.2), r"config\.data\.std\[1\] is 0\.0; it must be above 0"),
        ("data", "hflip", 2.0, r"config\.data\.hflip is 2\.0; .* at least 0 and at most 1"),
        ("data", "workers", -1, r"config\.data\.workers is -1; it must be at least 0"),
        ("train", "ema_decay", 1.5, r"ema_decay is 1\.5; it must be at least 0 and below 1"),
        ("train", "ema_decay", 1, r"ema_decay is 1\.0; it must be at least 0 and below 1"),
        ("train", "batch_size", 0, r"config\.train\.batch_size is 0; it must be at least 1"),
        ("optimizer", "base_lr", math.nan, r"base_lr is nan; it must be a finite number"),
        ("optimizer", "clip_norm", math.inf, r"clip_norm is inf; it must be a finite number"),
        ("model", "depths", (2, 0), r"config\.model\.depths\[1\] is 0; it must be at least 1"),
        ("model", "drop_path_rate", 1.0, r"drop_path_rate is 1\.0; it must be .* below 1"),
    ],
)
def test_refuses(group, name, value, message):
    values = common.get_config().to_dict()
    values[group][name] = value
    with pytest.raises(ValueError, match=message):
        parse(values)


def test_refuses_missing_and_misplaced_groups():
    values = common.get_config().to_dict()
    del values["train"]["epochs"]
    with pytest.raises(ValueError, match=r"config\.train lacks epochs"):
        parse(values)
    values["train"] = 3
    with pytest.raises(ValueError, match=r"config\.train is 3; it must be a group"):
        parse(values)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_refuses_seeds_out_of_range(seed):
    values = common.get_config().to_dict()
    values["seed"] = seed
    with pytest.raises(ValueError, match=r"config\.seed is .*; it must be at least 0 and at most"):
        parse(values)


def test_every_number_has_a_range():
    """A new setting must state its range."""
    for group in (ModelConfig, DataConfig, OptimizerConfig, TrainConfig):
        for name, hint in typing.get_type_hints(group, include_extras=True).items():
            if re.search(r"\b(int|float)\b", str(hint)):
                assert "Bounds" in str(hint), f"{group.__name__}.{name}"


def test_settings_of_detection():
    values = common.get_config().to_dict()
    small = {"buckets": [[64, 64]], "resize_scale": [64, 64], "multi_scale": "resize"}
    task = parse(values | {"task": {"name": "detection", **small}}).task
    assert isinstance(task, DetectionConfig)
    assert task.buckets == ((64, 64),)
    assert len(DetectionConfig().short_sides) == 11
    with pytest.raises(ValueError, match=r"task\.buckets\[0\] is \(64,\); it must be 2 numbers"):
        parse(values | {"task": {"name": "detection", "buckets": ((64,),)}})
