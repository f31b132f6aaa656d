"""Runs that start from weights: frozen parts, layer decay, larger images; and settings that cannot
be."""

import dataclasses
import json
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune, linear_probe
from tests.train.test_run import at_step, final, lines
from vig_jax.config import parse
from vig_jax.errors import ConfigError
from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.train.experiment import Experiment
from vig_jax.train.loop import run


def everything(file, tiny):
    """A run with frozen parameters, layer decay, parts of batches, and lengths in other units."""
    return tiny(
        init_weights=str(file),
        data__mixup_alpha=0.0,
        data__cutmix_alpha=0.0,
        optimizer__freeze="patch_embed,blocks_*/attn",
        optimizer__layer_decay=0.5,
        train__accumulation_steps=2,
        train__epochs=0,
        train__steps=5,
        train__eval_every_epochs=0,
        train__eval_every_examples=24,
    )


def test_run_with_everything(weights, tiny, tmp_path, capsys):
    file, theirs = weights
    config = everything(file, tiny)
    run(config, tmp_path / "whole")
    assert "5 steps (1.25 epochs) of 8 images" in capsys.readouterr().err
    for variables in final(tmp_path / "whole"):  # raw and averaged
        params = jax.device_get(variables["params"])
        chex.assert_trees_all_equal(params["patch_embed"], theirs["patch_embed"])
        chex.assert_trees_all_equal(params["blocks_0"]["attn"], theirs["blocks_0"]["attn"])
        assert (params["norm"]["scale"] != theirs["norm"]["scale"]).any()
        assert (
            params["blocks_0"]["mlp"]["down_proj"]["kernel"]
            != theirs["blocks_0"]["mlp"]["down_proj"]["kernel"]
        ).any()
    evaluated = [r for r in lines(tmp_path / "whole") if "eval/top1" in r]
    assert [r["step"] for r in evaluated] == [3, 5]
    assert {"eval/f1", "eval/ema_f1"} < evaluated[0].keys()  # two classes


@pytest.mark.slow
def test_resumed_run_with_everything(weights, tiny, tmp_path, monkeypatch):
    config = everything(weights[0], tiny)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        run(config, tmp_path / "broken")
    run(config, tmp_path / "broken")
    chex.assert_trees_all_equal(final(tmp_path / "broken"), final(tmp_path / "whole"))


def test_position_embedding_is_made_for_the_size_of_the_images(weights, tiny):
    file, theirs = weights
    config = tiny(init_weights=str(file), data__image_size=48, model__img_size=None)
    experiment = Experiment.from_config(config)
    assert experiment.config.model.img_size == 48
    variables, line = experiment.initial_variables()
    assert "position embedding resized from 4x4 to 6x6" in line
    expected = resize_pos_embed(jnp.asarray(theirs["pos_embed"]), (6, 6)).reshape(1, 36, 32)
    np.testing.assert_array_equal(variables["params"]["pos_embed"], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"data__image_size": 224, "model__img_size": None},  # as published: nothing to say
        {
            "data__image_size": 32,
            "model__name": "vig_h_t",  # has no position embedding
            "model__img_size": None,
            "model__patch_size": None,
            "model__embed_dim": None,
            "model__embed_dims": (8, 8, 8, 8),
            "model__depth": None,
            "model__depths": (1, 1, 1, 1),
            "model__num_heads": (1, 1, 1, 1),
        },
    ],
)
def test_size_is_left_unset_where_it_says_nothing(tiny, changes):
    assert Experiment.from_config(tiny(**changes)).config.model.img_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__layer_decay": 0.7}, "config.init_weights is not set"),
        (
            {"init_weights": "x", "optimizer__layer_decay": 1.2},
            "layer_decay is 1.2; it must be above 0",
        ),
        ({"init_weights": "x", "optimizer__freeze": "block_0"}, "no parameter is called 'block_0'"),
        ({"init_weights": "x", "optimizer__freeze": "*"}, "leaves nothing to train"),
        ({"train__accumulation_steps": 3}, "batch of 8 cannot be computed in 3 parts"),
        ({"train__accumulation_steps": 8}, "mixup_group=1 must be even"),
        ({"train__steps": 7}, "config.train.epochs=3 and config.train.steps=7"),
        ({"train__epochs": 0}, "how long is the run"),
        ({"optimizer__warmup_steps": 7}, "warmup_epochs=1.0 and config.optimizer.warmup_steps=7"),
        ({"data__mixup_group": 3}, "mixup_group=3 must be even"),
        ({"data__image_size": 2}, "2x2 pixels; .* needs at least 3"),
    ],
)
def test_settings_that_cannot_be(tiny, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        Experiment.from_config(tiny(**changes))
    assert "\n" not in str(error.value)


def test_pages():
    one, probe = (parse(page.get_config()) for page in (finetune, linear_probe))
    assert 0 < one.optimizer.layer_decay < 1
    assert one.optimizer.freeze == ""
    assert (probe.optimizer.freeze, probe.optimizer.weight_decay) == ("backbone", 0)
    for config in (one, probe):  # the user names both
        assert config.init_weights is None
        assert config.data.path is None
        assert json.loads(json.dumps(dataclasses.asdict(config)))
