"""Upstream's published files are recognised by name, and compared with their SHA-256."""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vig_jax
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.files import file_digest
from vig_jax.inference.loaded_model import restore_weights
from vig_jax.weights import upstream_files
from vig_jax.weights.load import read_weight_file, save_safetensors
from vig_jax.weights.upstream_files import PUBLISHED_FILES

SMALL = Path(__file__).parent / "golden" / "plain_fmt_best_acc_ema_ckpt.pth"
SIZES = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1}
NAME = "vig_t_77p2acc.pth"


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(SMALL, tmp_path / NAME))


def test_every_model_has_one_file():
    assert sorted(f.model_name for f in PUBLISHED_FILES.values()) == sorted(vig_jax.list_models())
    for name, file in PUBLISHED_FILES.items():
        accuracy = f"{file.top1:.1f}".replace(".", "p")
        assert name == f"{file.model_name}_{accuracy}acc.pth"
        assert len(file.sha256) == 8
        assert int(file.sha256, 16)


def test_name_chooses_the_model(file):
    expected = vig_jax.load_weights(SMALL, "vig_t", **SIZES)
    jax.tree.map(np.testing.assert_array_equal, vig_jax.load_weights(file, **SIZES), expected)
    loaded = restore_weights(file, settings=SIZES)
    assert loaded.config.model.name == "vig_t"
    with pytest.raises(WeightsError, match="are those of vig_t, not of vig_s"):
        vig_jax.load_weights(file, "vig_s", **SIZES)
    with pytest.raises(ConfigError, match=r"ckpt\.pth does not name its model: it needs --model"):
        vig_jax.load_weights(SMALL, **SIZES)


def test_digest_is_compared(file, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        vig_jax.load_weights(file, **SIZES)
    assert "its SHA-256 begins with" in caplog.text
    assert "with a1eb2901" in caplog.text
    same = dataclasses.replace(PUBLISHED_FILES[NAME], sha256=file_digest(file)[:8])
    monkeypatch.setitem(upstream_files.PUBLISHED_FILES, NAME, same)
    assert not read_weight_file(file).notes


def test_our_own_files_name_their_model(tmp_path):
    params = vig_jax.load_weights(SMALL, "vig_t", **SIZES)["params"]
    file = tmp_path / "own.safetensors"
    save_safetensors(params, file, model_name="vig_t", averaged=None)
    jax.tree.map(
        np.testing.assert_array_equal, vig_jax.load_weights(file, **SIZES)["params"], params
    )
