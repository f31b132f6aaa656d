"""The comparison of ONNX files on the CPU, without onnxruntime and PyTorch."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import vig_jax
from benchmarks import candidates, onnx_latency
from vig_jax.weights import published

PLAIN = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL = ("--image-size", "32", "--repeats", "3", "--sample-seconds", "0.001", "--threads", "1")


class Torch:
    """Replaces `benchmarks.torch_onnx`."""

    @staticmethod
    def write(name, image_size, path):
        path.write_text(f"{name} {image_size}")


@pytest.fixture
def fake_files(monkeypatch):
    """Files that are not read: a session sleeps 20 ms for a peer, and 1 ms for ours."""

    def session(path, threads):
        assert threads == 1
        seconds = 0.02 if path.read_text() == "peer 32" else 0.001

        def call(images):
            time.sleep(seconds)
            return np.zeros((len(images), 1000))

        return call

    def export(model, target, *, image_size, verify):
        assert (image_size, verify) == (32, True)
        Path(target).write_text(model.config.model.name)

    monkeypatch.setattr(onnx_latency, "session", session)
    monkeypatch.setattr(onnx_latency, "_use_cores", lambda count: None)
    monkeypatch.setattr(vig_jax, "export", export, raising=False)
    monkeypatch.setattr(candidates, "import_peers", lambda module: Torch)


@pytest.mark.usefixtures("fake_files")
def test_the_table(tmp_path, monkeypatch, capsys):
    full = published.published_config

    def small(name, *, settings, image_size):
        return full(name, settings=settings | PLAIN, image_size=image_size)

    monkeypatch.setattr(published, "published_config", small)
    file = tmp_path / "rows.json"
    models = ["--models", "vig_t=peer", "--batch-size", "2"]
    assert onnx_latency.main([*models, *SMALL, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    rows = written["rows"]
    names = [("vig_t", "ONNX"), ("vig_t", "JAX"), ("peer", "ONNX")]
    assert [(row["model"], row["variant"]) for row in rows] == names
    assert {row["batch_size"] for row in rows} == {2}
    assert {row["threads"] for row in rows} == {written["threads"]} == {1}
    ours, jax_, peer = rows
    assert peer["ms"] >= 20 > ours["ms"] >= 1
    assert jax_["ms"] > 0
    assert peer["img_per_s"] == pytest.approx(2000 / peer["ms"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [list(name) for name in names]


@pytest.mark.usefixtures("fake_files")
def test_an_unknown_model(capsys):
    assert onnx_latency.main(["--models", "vig_x", *SMALL]) == 1
    assert "vig_x" in capsys.readouterr().err.splitlines()[-1]


def test_cores(monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pinned.append(cores))
    onnx_latency._use_cores(2)
    assert pinned == [[3, 4]]
