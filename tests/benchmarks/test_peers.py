"""The comparison without PyTorch: ours alone, and made-up peers."""

import csv
import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contestants, peers
from vig_jax.tasks import classification

ROOT = Path(__file__).parents[2]
SMALL = ("--image-size", "32", "--batch-size", "2", "--repeats", "2", "--sample-seconds", "0.001")


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Models of one block compile sooner."""
    create_model = functools.partial(classification.create_model, depth=1)
    monkeypatch.setattr(classification, "create_model", create_model)


class Peers:
    """Stands for `benchmarks.torch_peers`: contestants that sleep."""

    def __init__(self, seconds):
        self.seconds = seconds  # by variant
        self.freed = 0

    def check(self, names):
        if "absent" in names:
            raise ValueError("no model absent")

    def versions(self):
        return {"torch": "0.0"}

    def free(self):
        self.freed += 1

    def contestants(self, name, *, image_size, batch_size, train, compile_mode, attention):
        assert (image_size, batch_size, attention) == (32, 2, "flash")
        assert compile_mode == ("default" if train else "reduce-overhead")
        yield f"{name}, broken: not measured"
        for variant, seconds in self.seconds.items():
            run = functools.partial(lambda seconds, calls: time.sleep(seconds * calls), seconds)
            yield contestants.Contestant(name, variant, 7, 11, 13, run)


@pytest.mark.parametrize("mode", [[], ["--train"]])
def test_ours_and_the_faster_variant_of_a_peer(mode, tmp_path, capsys, monkeypatch):
    torch_peers = Peers({"eager": 0.05, "compiled": 0.005})
    monkeypatch.setattr(peers, "_torch_peers", lambda: torch_peers)
    files = {"json": tmp_path / "rows.json", "csv": tmp_path / "rows.csv"}
    picture = tmp_path / "rows.png"
    options = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    arguments = ["--models", "vig_t=peer", *SMALL, *mode, *options, "--plot", str(picture)]
    assert peers.main(arguments) == 0
    told = json.loads(files["json"].read_text())
    ours, peer = told["rows"]
    assert told["mode"] == ("training step" if mode else "inference")
    assert told["torch"] == "0.0"
    assert (ours["model"], ours["variant"], ours["relative"]) == ("vig_t", "vig_jax", 1.0)
    assert ours["memory_bytes"] > 4e6  # the parameters at least
    assert ours["mfu"] is None  # nobody knows the peak of this CPU
    assert (peer["model"], peer["variant"], peer["parameters"]) == ("peer", "compiled", 7)
    assert peer["ms"] >= 5.0
    assert peer["relative"] == pytest.approx(peer["img_per_s"] / ours["img_per_s"])
    with files["csv"].open() as lines:
        assert [row["model"] for row in csv.DictReader(lines)] == ["vig_t", "peer"]
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[3:5]] == ["vig_t", "peer"]
    assert "peer, broken: not measured" in printed.err
    assert torch_peers.freed == 1
    assert picture.stat().st_size > 1000


def test_wrong_logits_are_not_timed(capsys, monkeypatch):
    inference_program = contestants.inference_program

    def doubled(config):
        program = inference_program(config)
        if config.model.dtype == "float32":
            return program
        compiled = program.compiled
        return dataclasses.replace(program, compiled=lambda *inputs: 2 * compiled(*inputs))

    monkeypatch.setattr(contestants, "inference_program", doubled)
    assert peers.main(["--models", "vig_t", *SMALL]) == 1
    printed = capsys.readouterr()
    assert "vig_t at 32 pixels: bfloat16 logits are off by 1.0e+00" in printed.err
    assert len(printed.out.splitlines()) == 3  # nothing below the head


def test_losses_that_are_not_finite_are_not_timed(monkeypatch):
    training_program = contestants.training_program

    def lost(config):
        program = training_program(config)
        step = program.compiled
        nan = lambda state, batch: (step(state, batch)[0], {"loss": np.float32(np.nan)})  # noqa: E731
        return dataclasses.replace(program, compiled=nan)

    monkeypatch.setattr(contestants, "training_program", lost)
    with pytest.raises(contestants.WrongResultError, match="the loss of a training step is nan"):
        contestants.ours("vig_t", image_size=32, batch_size=2, train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "vig_z=deit_tiny_patch16_224"], "--models: vig_z is none of ours (vig_t,"),
        (["--models", "vig_t=absent"], "no model absent"),
    ],
)
def test_unknown_models(options, message, capsys, monkeypatch):
    monkeypatch.setattr(peers, "_torch_peers", lambda: Peers({}))
    assert peers.main(options) == 1
    assert capsys.readouterr().err.startswith(f"peers.py: {message}")


def test_without_torch_the_command_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_peers", raising=False)
    assert peers.main(["--models", "vig_t=deit_tiny_patch16_224"]) == 1
    assert "pip install torch timm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--skip-compile", "--compile-mode", "default"], "exclude each other"),
    ],
)
def test_options_that_cannot_be(options, message, capsys):
    with pytest.raises(SystemExit):
        peers.main(options)
    assert message in capsys.readouterr().err


def test_help_needs_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "benchmarks" / "peers.py"), "--help"],  # -S: bare Python
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vig_t=deit_tiny_patch16_224" in done.stdout
