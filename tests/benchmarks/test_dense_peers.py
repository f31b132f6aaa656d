"""The comparison of dense models without PyTorch: made-up peers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import candidates, dense_peers
from vig_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
QUICK = ("--ours", "--repeats", "2", "--sample-seconds", "0.001")


class Peers:
    """Replaces `benchmarks.torch_segmentation`: candidates that sleep."""

    BACKBONES = {"slow": "slow_timm", "quick": "quick_timm", "huge": "huge_timm"}  # noqa: RUF012
    SECONDS = {"slow": 0.02, "quick": 0.002}  # noqa: RUF012

    def __init__(self):
        self.asked = []

    def check(self, names):
        assert all(name.endswith("_timm") for name in names)

    def versions(self):
        return {"torch": "0.0"}

    def candidates(self, name, *, image_size, batch_size, train, compile_modes):
        self.asked.append((name, image_size, batch_size, train, compile_modes))
        if name == "huge":
            yield "huge: not measured: out of memory"
            return
        for variant, factor in (("eager", 2), *((mode, 1) for mode in compile_modes)):
            seconds = self.SECONDS[name] * factor
            yield candidates.Candidate(
                name, variant, 7, 11, 13, lambda calls, seconds=seconds: time.sleep(seconds * calls)
            )


@pytest.fixture
def peers(monkeypatch):
    made_up = Peers()
    monkeypatch.setattr(candidates, "import_peers", lambda module: made_up)
    return made_up


def test_ours_comes_first(peers, monkeypatch, capsys):
    made = []

    def ours(name, **settings):
        made.append((name, settings))
        return candidates.Candidate(
            name, "vig_jax", 7, 11, 13, lambda calls: time.sleep(calls / 1e3)
        )

    monkeypatch.setattr(candidates, "ours", ours)
    options = [*QUICK[1:], "--ours", "vig_h_t", "--peers", "quick", "--batch-size", "2"]
    assert dense_peers.main([*options, "--image-size", "64", "128"]) == 0
    settings = {"batch_size": 2, "train": False, "task": "segmentation"}
    assert made == [("vig_h_t", {"image_size": (64, 128), **settings})]
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("vig_h_t ")
    assert first.endswith(" 1.000")
    assert second.startswith("quick ")
    assert dense_peers.main([*options, "--train", "--image-size", "64", "128"]) == 1
    assert len(made) == 1


def test_training_images_of_detection_need_not_be_square(peers, monkeypatch, tmp_path):
    made = []

    def ours(name, **settings):
        made.append(settings)
        return candidates.Candidate(name, "vig_jax", 7, 11, 13, lambda calls: None)

    monkeypatch.setattr(candidates, "ours", ours)
    file = tmp_path / "rows.json"
    options = ["--task", "detection", "--train", "--peers", "quick", "--batch-size", "2"]
    assert dense_peers.main([*options, *QUICK[1:], "--ours", "vig_h_t", "--json", str(file)]) == 0
    settings = {"batch_size": 2, "train": True, "task": "detection"}
    assert made == [{"image_size": (800, 1344), **settings}]
    assert peers.asked == [("quick", (800, 1344), 2, True, ["default"])]
    assert json.loads(file.read_text())["task"] == "detection"


def test_a_row_for_each_model(peers, tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    options = ["--batch-size", "2", "--image-size", "512", "2048", *QUICK]
    assert dense_peers.main(["--peers", "slow", "quick", *options, "--json", str(file)]) == 0
    mode = ["reduce-overhead"]
    expected = [(name, (512, 2048), 2, False, mode) for name in ("slow", "quick")]
    assert peers.asked == expected
    written = json.loads(file.read_text())
    assert (written["torch"], written["task"]) == ("0.0", "segmentation")
    slow, quick = written["rows"]
    for row in (slow, quick):
        assert (row["variant"], row["pass"]) == ("reduce-overhead", "inference")
        assert (row["image_size"], row["batch_size"]) == ("512x2048", 2)
        assert row["img_per_s"] == pytest.approx(2e3 / row["ms"])
    assert (slow["relative"], slow["ms"] >= 20) == (1.0, True)
    assert quick["relative"] == pytest.approx(quick["img_per_s"] / slow["img_per_s"])
    assert quick["relative"] > 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["slow", "quick"]
    assert "512x2048" in lines[3]


def test_training_in_given_modes_and_a_model_that_fails(peers, capsys):
    modes = ["--compile-mode", "default", "max-autotune"]
    assert dense_peers.main(["--train", "--peers", "huge", "quick", *modes, *QUICK]) == 1
    assert [asked[1:] for asked in peers.asked] == [((512, 512), 16, True, modes[1:])] * 2
    printed = capsys.readouterr()
    assert "huge: not measured: out of memory" in printed.err
    assert printed.out.splitlines()[-1].split()[0] == "quick"
    assert dense_peers.main(["--train", "--peers", "quick", "--compile-mode", *QUICK]) == 0
    assert peers.asked[-1][-1] == []
    assert "eager" in capsys.readouterr().out.splitlines()[-1]


def test_what_cannot_be_run(peers, tmp_path, capsys, monkeypatch):
    assert dense_peers.main(["--peers", "swan", "quick"]) == 1
    message = "--peers: swan is none of the backbones (slow, quick, huge)"
    assert capsys.readouterr().err == f"dense_peers.py: {message}\n"
    assert dense_peers.main(["--peers", "quick", "--json", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    with pytest.raises(SystemExit):
        dense_peers.main(["--image-size", "0", "512"])
    assert "0 must be at least 1" in capsys.readouterr().err

    def no_device(names):
        raise ConfigError("PyTorch sees no CUDA device")

    monkeypatch.setattr(peers, "check", no_device)
    assert dense_peers.main(["--peers", "quick"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_without_torch_the_command_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "timm", None)
    names = ("segmentation", "detection", "backbone", "peers")
    for module in [f"benchmarks.torch_{name}" for name in names]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    for task in ("segmentation", "detection"):
        assert dense_peers.main(["--task", task]) == 1
        assert "pip install torch timm" in capsys.readouterr().err


def test_help_needs_nothing():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.dense_peers", "--help"],  # -S: bare Python
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "swin_tiny convnext_tiny" in done.stdout
