"""Options and their mistakes, each in a separate process because absl keeps global state."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs import fashion_mnist
from vig_jax.config import named
from vig_jax.errors import NonFiniteLossError
from vig_jax.train import launch

ROOT = Path(__file__).parents[2]


# Imports everything once, and runs train.py in a fork for each line of options.
SERVER = """
import json, os, runpy, sys, tempfile, warnings
import vig_jax.train.launch, vig_jax.train.loop
warnings.simplefilter("ignore")  # JAX warns of forks; here it has no threads yet
for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["train.py", *json.loads(line)]
            runpy.run_path("train.py", run_name="__main__")
        _, status = os.waitpid(pid, 0)
        printed = [(file.seek(0), file.read())[1] for file in (out, err)]
    print(json.dumps([os.waitstatus_to_exitcode(status), *printed]), flush=True)
"""


@pytest.fixture(scope="module")
def train():
    """A function from options to the exit status, the output and the errors of train.py."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def run(*options):
            server.stdin.write(json.dumps(options) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"error: --config=NAME or --config=FILE is missing; known: configs/"),
        (
            ["--config=configs/vig_tt.py"],
            "does not exist; did you mean 'configs/vig_t.py",
        ),
        (["--config=configs"], "error: --config=configs is a folder"),
        (
            ["--config=configs/vig_t.py", "--config.optimizer.base_lrr=1"],
            "there is no setting 'base_lrr'; did you mean 'base_lr'?",
        ),
        (
            ["--config=configs/vig_t.py", "--config.train.epochs=2.5"],
            "error: flag --config.train.epochs=2.5: invalid literal",
        ),
        (
            ["--config=configs/vig_t.py", "--config.data.image_size=320x224"],
            "side of square images, config.data.eval_size=(HEIGHT,WIDTH) is the size",
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
        (
            ["--config=configs/fashion_mnist.py", "--plugin=absent"],
            "error: plugin absent cannot be imported: there is no module 'absent'; name one",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.train.loggers=('tensorbord',)"],
            "error: config.train.loggers: 'tensorbord' is not a logger; did you mean 'tensorboard'",
        ),
        (
            ["--config=configs/fashion_mnist.py", "--config.data.augmentations=('blur',)"],
            "error: config.data.augmentations: 'blur' is not registered by a plugin; known: none",
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
def test_mistakes_end_in_one_line(options, message, tmp_path, train):
    cache = [f"--config.train.compilation_cache={tmp_path / 'cache'}"] if options else []
    status, _, errors = train(*options, *cache, f"--workdir={tmp_path / 'run'}")
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_config_is_found_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in ("--config=vig_b", "--config=vig_b.py", "--config=configs/vig_b.py"):
        (found,) = launch._with_named_config(["train.py", given])[1:]
        file, _, name = found.removeprefix("--config=").partition(":")
        assert (file, name) == (named.__file__, "vig_b")
        assert launch._name_of(f"{file}:{name}") == "vig_b"
    assert launch._with_named_config(["train.py", "--config", "vig_b"])[2] == f"{file}:vig_b"
    assert launch._config_roots(["train.py", found]) == [str(tmp_path)]
    other = ["train.py", "--config=mine/vig_b.py", "--config.model.name=vig_b"]
    assert launch._with_named_config(other) == other
    with pytest.raises(SystemExit):
        launch._parse_flags(["train.py", "--config=vig_c"])
    assert "--config=vig_c does not exist; did you mean 'vig_t'?" in capsys.readouterr().err


def test_a_page_in_configs_goes_before_the_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "configs" / "vig_b.py"
    page.parent.mkdir()
    page.touch()
    found = launch._with_named_config(["train.py", "--config=vig_b"])
    assert found == ["train.py", "--config=configs/vig_b.py"]
    assert launch._name_of("configs/vig_b.py") == "vig_b"
    assert launch._config_roots(found) == [str(tmp_path)] * 2


def test_names_of_configs_are_listed(train):
    status, printed, _ = train("--list")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == list(named.names())


def refused_by(error, monkeypatch, workdir):
    """Has the run end with an error as soon as it begins."""
    config = SimpleNamespace(value=fashion_mnist.get_config())
    monkeypatch.setattr(launch, "_CONFIG", config)
    monkeypatch.setattr(launch, "_WORKDIR", SimpleNamespace(value=str(workdir)))
    monkeypatch.setattr(launch, "_PLUGIN", SimpleNamespace(value=[]))
    for option in (
        "_DISTRIBUTED",
        "_COORDINATOR",
        "_NUM_PROCESSES",
        "_PROCESS_ID",
        "_LOCAL_PROCESSES",
    ):
        monkeypatch.setattr(launch, option, SimpleNamespace(value=None))
    monkeypatch.setattr(launch.config_flags, "get_config_filename", lambda flag: "configs/x.py")
    monkeypatch.setattr(launch.flags, "FLAGS", {"config": None})

    def run(config, workdir):
        raise error

    monkeypatch.setattr("vig_jax.train.loop.run", run)
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
def test_a_disk_that_cannot_be_written_ends_in_one_line(error, full, monkeypatch, capsys, tmp_path):
    refused_by(error, monkeypatch, tmp_path)
    reported = full or isinstance(error, PermissionError)
    with pytest.raises(SystemExit if reported else type(error)):
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


def test_help(train):
    status, printed, _ = train("--help")
    assert status == 0
    for text in ("--config=configs/vig_b.py", "--workdir", "--config.KEY=VALUE"):
        assert text in printed


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
        "import vig_jax.data.loader.pipeline, vig_jax.data.convert.conversion; "
        "sys.exit(sys.modules['jax'] is not None or bool({'jaxlib', 'flax'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
