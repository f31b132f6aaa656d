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

from benchmarks import candidates, peers
from vig_jax.bench import programs
from vig_jax.bench.throughput import Program
from vig_jax.errors import ConfigError
from vig_jax.models import from_config

ROOT = Path(__file__).parents[2]
SMALL = ("--image-size", "32", "--batch-size", "2", "--repeats", "2", "--sample-seconds", "0.001")

ALL_PASSES = ("--passes", "inference", "train")


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Models of one block compile sooner."""
    create_model = functools.partial(from_config.create_model, depth=1)
    monkeypatch.setattr(from_config, "create_model", create_model)


class Peers:
    """Replaces `benchmarks.torch_peers`: candidates that sleep."""

    def __init__(self, seconds):
        self.seconds = seconds  # by variant
        self.asked = []  # name, image size, batch size and pass
        self.freed = 0

    def check(self, names):
        if "absent" in names:
            raise ConfigError("no model absent")

    def versions(self):
        return {"torch": "0.0"}

    def free(self):
        self.freed += 1

    def candidates(self, name, *, image_size, batch_size, train, compile_mode, attention):
        assert attention == "flash"
        assert compile_mode == ("default" if train else "reduce-overhead")
        self.asked.append((name, image_size, batch_size, train))
        yield f"{name}, broken: not measured"
        for variant, seconds in self.seconds.items():
            run = functools.partial(lambda seconds, calls: time.sleep(seconds * calls), seconds)
            yield candidates.Candidate(name, variant, 7, 11, 13, run)


@pytest.mark.parametrize("mode", ["inference", pytest.param("train", marks=pytest.mark.slow)])
def test_ours_and_the_faster_variant_of_a_peer(mode, tmp_path, capsys, monkeypatch):
    torch_peers = Peers({"eager": 0.05, "compiled": 0.005})
    monkeypatch.setattr(peers, "_torch_peers", lambda: torch_peers)
    files = {"json": tmp_path / "new" / "rows.json", "csv": tmp_path / "newer" / "rows.csv"}
    options = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    options += ["--passes", mode, "--plot", str(tmp_path / "newest" / "rows.png")]
    assert peers.main(["--models", "vig_t=peer", *SMALL, *options]) == 0
    written = json.loads(files["json"].read_text())
    ours, peer = written["rows"]
    assert written["torch"] == "0.0"
    assert (ours["model"], ours["variant"], ours["relative"]) == ("vig_t", "vig_jax", 1.0)
    # At least bfloat16 parameters; in training float32 ones, two moments and the EMA.
    assert ours["memory_bytes"] > ours["parameters"] * (2 if mode == "inference" else 4 * 4)
    assert ours["mfu"] is None  # the peak of this CPU is unknown
    assert (peer["model"], peer["variant"], peer["parameters"]) == ("peer", "compiled", 7)
    assert peer["ms"] >= 5.0
    assert peer["relative"] == pytest.approx(peer["img_per_s"] / ours["img_per_s"])
    for row in (ours, peer):
        assert [row[name] for name in ("pass", "image_size", "batch_size")] == [mode, 32, 2]
    with files["csv"].open() as lines:
        assert [row["model"] for row in csv.DictReader(lines)] == ["vig_t", "peer"]
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[3:5]] == ["vig_t", "peer"]
    assert "peer, broken: not measured" in printed.err
    assert torch_peers.asked == [("peer", 32, 2, mode == "train")]
    assert torch_peers.freed == 1
    assert (tmp_path / "newest" / f"rows_{mode}.png").stat().st_size > 1000


def made_up(name, *, image_size, batch_size, train):
    """Stands for `candidates.ours`: quick, and no memory for 48 pixels."""
    if image_size == 48:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return candidates.Candidate(name, "vig_jax", 7, 11, 13, lambda calls: time.sleep(1e-4))


def test_one_call_for_a_whole_table(tmp_path, capsys, monkeypatch):
    """Covers passes, sizes given per model, and one failure in between."""
    torch_peers = Peers({"eager": 0.0001})
    monkeypatch.setattr(peers, "_torch_peers", lambda: torch_peers)
    monkeypatch.setattr(candidates, "ours", made_up)
    file = tmp_path / "rows.json"
    models = ["vig_t@32x4,48x3,64x1=deit", "vig_s=swin,convnext"]
    assert peers.main(["--models", *models, *SMALL, *ALL_PASSES, "--json", str(file)]) == 1
    assert torch_peers.asked == [
        (name, size, batch, train)
        for train in (False, True)
        for name, size, batch in (("deit", 32, 4), ("deit", 64, 1))
    ] + [(name, 32, 2, train) for train in (False, True) for name in ("swin", "convnext")]
    assert torch_peers.freed == 8
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 + 2 * 3
    assert {row["pass"] for row in rows} == {"inference", "train"}
    errors = capsys.readouterr().err
    for name in ("inference", "train"):
        assert f"vig_t, {name} at 48 pixels, batch 3: not measured: RESOURCE_EXH" in errors


def test_tables_are_there_when_a_run_is_ended(tmp_path, monkeypatch):
    def ended(name, *, image_size, **sizes):
        if image_size == 48:
            raise KeyboardInterrupt
        return made_up(name, image_size=image_size, **sizes)

    monkeypatch.setattr(candidates, "ours", ended)
    file = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        peers.main(["--models", "vig_t@32x2,48x2", *SMALL, "--csv", str(file)])
    with file.open() as lines:
        assert [row["image_size"] for row in csv.DictReader(lines)] == ["32"]


def test_a_file_that_cannot_be_written_is_found_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(candidates, "ours", None)  # not even called
    assert peers.main(["--models", "vig_t", "--json", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_wrong_logits_are_not_timed(capsys, monkeypatch):
    inference_program = programs.inference_program

    def doubled(config):
        program = inference_program(config)
        compiled = program.compiled
        return dataclasses.replace(program, compiled=lambda *inputs: 2 * compiled(*inputs))

    monkeypatch.setattr(candidates, "inference_program", doubled)
    assert peers.main(["--models", "vig_t", *SMALL]) == 1
    printed = capsys.readouterr()
    assert "vig_t, inference at 32 pixels, batch 2: not measured: logits of bf" in printed.err
    assert "off by 1.0e+00" in printed.err
    assert len(printed.out.splitlines()) == 3  # nothing below the head


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"loss": np.nan}, "loss of bfloat16 off by nan"),
        ({"loss": 1.01}, "loss of bfloat16 off by 1.0e-02"),
        ({"grad_norm": 1.5}, "grad_norm of bfloat16 off by 5.0e-01"),
    ],
)
def test_wrong_steps_are_not_timed(factors, message, monkeypatch):
    right = {"loss": np.float32(6.9), "grad_norm": np.float32(4.4)}

    def step(config):
        wrong = {} if config.model.dtype == "float32" else factors
        metrics = {name: value * wrong.get(name, 1) for name, value in right.items()}
        return Program(lambda state, batch: (state, metrics), [(None,)], state=1)

    monkeypatch.setattr(candidates, "training_program", step)
    with pytest.raises(candidates.WrongResultError, match=message):
        candidates.ours("vig_t", image_size=32, batch_size=2, train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--models", "vig_z=deit_tiny_patch16_224"],
            "--models: vig_z is none of our models (",
        ),
        (["--models", "vig_t=absent"], "no model absent"),
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (
            ["--image-size", "224", "512", "--batch-size", "4", "2", "1"],
            "--batch-size has 3 numbers and --image-size 2: give one batch size for all",
        ),
    ],
)
def test_what_cannot_be_run(options, message, capsys, monkeypatch):
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
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--models", "vig_t@224"], "'vig_t@224': '224' is not PIXELSxBATCH"),
        (["--models", "vig_t@224x0=deit"], "'224x0' is not PIXELSxBATCH"),
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
