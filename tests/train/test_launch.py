"""Options and their mistakes, each in a separate process because absl keeps global state."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs import common
from vig_jax.errors import NonFiniteLossError
from vig_jax.train import launch

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
        ([], r"error: --config=FILE is missing; files here: configs/"),
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
            "error: gla_implementation='pallas' is unknown; did you mean",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.model.drop_path_rate=1.0"],
            "error: config.model.drop_path_rate is 1.0; it must be at least 0 and below 1",
        ),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path):
    done = train(*options, f"--workdir={tmp_path / 'run'}", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def refused_by(error, monkeypatch, workdir):
    """Has the run end with an error as soon as it begins."""
    config = SimpleNamespace(value=common.get_config())
    monkeypatch.setattr(launch, "_CONFIG", config)
    monkeypatch.setattr(launch, "_WORKDIR", SimpleNamespace(value=str(workdir)))
    monkeypatch.setattr(launch, "_DISTRIBUTED", SimpleNamespace(value=False))
    monkeypatch.setattr(launch.config_flags, "get_config_filename", lambda flag: "configs/x.py")
    monkeypatch.setattr(launch.flags, "FLAGS", {"config": None})

    def run(config, workdir):
        raise error

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(launch.os, "_exit", sys.exit)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [28]"), True),
        (ValueError("shapes differ"), False),
    ],
)
def test_a_full_disk_ends_in_one_line(error, full, monkeypatch, capsys, tmp_path):
    refused_by(error, monkeypatch, tmp_path)
    with pytest.raises(SystemExit if full else type(error)):
        launch._train(["train.py"])
    printed = capsys.readouterr().err
    assert (f"error: the disk of {tmp_path} is full" in printed) == full


def test_notes_are_printed_but_not_those_about_tracebacks(monkeypatch, capsys, tmp_path):
    error = NonFiniteLossError("loss = nan")
    error.add_note("A lower rate helps")
    error.add_note("----\nGrain has removed its frames")
    refused_by(error, monkeypatch, tmp_path)
    with pytest.raises(SystemExit):
        launch._train(["train.py"])
    assert capsys.readouterr().err == "error: loss = nan\nA lower rate helps\n"


def test_help():
    done = train("--help")
    assert done.returncode == 0
    for text in ("--config=configs/vig_b.py", "--workdir", "--config.KEY=VALUE"):
        assert text in done.stdout


@pytest.mark.parametrize(
    "begin",
    [
        "import runpy; runpy.run_path('train.py', run_name='__mp_main__')",
        "import multiprocessing as m; m.parent_process = lambda: m; import vig_jax.cli.main",
    ],
    ids=["train.py", "vig"],
)
def test_data_workers_import_nothing_heavy(begin):
    code = (
        f"import sys; {begin}; "
        "import vig_jax.data.loader.batches, vig_jax.data.convert.conversion; "
        "sys.exit(sys.modules['jax'] is not None or bool({'jaxlib', 'flax'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
