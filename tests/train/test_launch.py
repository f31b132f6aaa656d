"""The door: options and their mistakes, in a process of its own as absl keeps global state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(*options, cache=None):
    return subprocess.run(
        [sys.executable, "train.py", *options],
        cwd=ROOT,
        env=os.environ | ({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"error: which experiment? --config=FILE is missing; here: configs/"),
        (
            ["--config=configs/vig_t.py", "--config.optimizer.base_lrr=1"],
            "there is no setting 'base_lrr'; did you mean 'base_lr'?",
        ),
        (
            ["--config=configs/vig_t.py", "--config.train.epochs=2.5"],
            "error: flag --config.train.epochs=2.5: invalid literal",
        ),
        (["--config=configs/vig_t.py", "--config.model.dtype=half"], "it must be one of"),
        (["--config=configs/vig_t.py"], "config.data.path is not set"),
        (
            ["--config=configs/fashion_mnist.py", "--config.optimizer.freeze=backbone"],
            "error: config.init_weights is not set, but config.optimizer.freeze",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.model.name=vig_x"],
            "error: unknown model 'vig_x'; did you mean",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.init_weights=absent.pth"],
            "error: config.init_weights=absent.pth: no weight file at absent.pth",
        ),
        # What only the model finds.
        (
            ["--config=configs/fashion_mnist.py", "--config.model.gla_implementation=pallas"],
            "error: bidirectional_gla: unknown implementation 'pallas'; did you mean",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.model.drop_path_rate=1.0"],
            "error: drop_path_rate=1.0 must be at least 0 and below 1",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(options, message, tmp_path):
    done = train(*options, f"--workdir={tmp_path / 'run'}", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help():
    done = train("--help")
    assert done.returncode == 0
    for text in ("--config=configs/vig_b.py", "--workdir", "--config.KEY=VALUE"):
        assert text in done.stdout


def test_data_workers_import_nothing_heavy():
    code = "import sys, train; sys.exit(bool({'jax', 'flax', 'vig_jax'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
