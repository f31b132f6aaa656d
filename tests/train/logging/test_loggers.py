"""Weights & Biases and MLflow are replaced by modules that record calls."""

import errno
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vig_jax.errors import ConfigError
from vig_jax.train.logging import loggers
from vig_jax.train.logging.loggers import LoggedRun, Logger, check_loggers, open_loggers

CONFIG = {"seed": 0, "model": {"name": "vig_t", "depths": (1, 2)}}
BEGIN = ("id", None), ("resume", "allow")
IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(params=["wandb", "mlflow"])
def calls(request, monkeypatch):
    """The calls of a module of this name, with the identity of the run last."""
    calls = []

    def record(name, result=None):
        def called(*args, **options):
            calls.append((name, *args, *options.items()))
            return result

        return called

    fake = ModuleType(request.param)
    fake.__spec__ = SimpleNamespace(name=request.param)
    if request.param == "wandb":
        fake.Image = np.shape
        started = SimpleNamespace(id="new", log=record("log"), finish=record("finish"))
        fake.init = record("init", started)
    else:
        point = SimpleNamespace(step=2)
        client = SimpleNamespace(get_metric_history=record("history", [point]))
        fake.MlflowClient = lambda: client
        started = SimpleNamespace(info=SimpleNamespace(run_id="new"))
        fake.start_run = record("start_run", started)
        for name in ("log_params", "log_metrics", "log_image", "end_run"):
            setattr(fake, name, record(name))
    monkeypatch.setitem(sys.modules, request.param, fake)
    monkeypatch.delitem(sys.modules, f"vig_jax.train.logging.{request.param}", raising=False)
    yield request.param, calls
    sys.modules.pop(f"vig_jax.train.logging.{request.param}", None)


def test_a_resumed_run_continues_the_same_run(calls, tmp_path):
    name, calls = calls
    (logger,) = open_loggers([name], LoggedRun(tmp_path, 0, CONFIG))
    assert isinstance(logger, Logger)
    logger.image("first_batch", IMAGE)
    logger.scalars(2, {"train/loss": 0.5})
    logger.close()
    begin, image, metrics, end = {
        "wandb": (
            [("init", *BEGIN, ("name", tmp_path.name), ("dir", str(tmp_path)), ("config", CONFIG))],
            ("log", {"first_batch": (4, 6, 3)}, ("step", 0)),
            ("log", {"train/loss": 0.5}, ("step", 2)),
            ("finish",),
        ),
        "mlflow": (
            [
                ("start_run", ("run_id", None), ("run_name", tmp_path.name)),
                ("log_params", {"seed": 0, "model.name": "vig_t", "model.depths": (1, 2)}),
            ],
            ("log_image", IMAGE, "first_batch.png"),
            ("log_metrics", {"train/loss": 0.5}, ("step", 2)),
            ("end_run",),
        ),
    }[name]
    np.testing.assert_equal(calls, [*begin, image, metrics, end])

    calls.clear()
    (logger,) = open_loggers([name], LoggedRun(tmp_path, 1, CONFIG))
    for step in (2, 3):  # the first is a repetition
        logger.scalars(step, {"train/loss": 0.5})
    if name == "wandb":  # which leaves repetitions out itself
        assert calls[0][1] == ("id", "new")
    else:
        assert calls[0][1] == ("run_id", "new")
        assert calls[1:] == [
            ("history", "new", "train/loss"),
            ("log_metrics", {"train/loss": 0.5}, ("step", 3)),
        ]


def test_a_missing_package_and_an_unknown_name():
    installed = [name for name in ("wandb", "mlflow") if name in sys.modules]
    for name in {"wandb", "mlflow"} - set(installed):
        with pytest.raises(ConfigError, match=rf"the package {name}: pip install 'vig-jax\[{name}"):
            check_loggers(["tensorboard", name])
    with pytest.raises(ConfigError, match="'wandbb' is not a logger; did you mean 'wandb'"):
        check_loggers(["wandbb"])


class Failing:
    """Fails in every method; records that it was closed."""

    def __init__(self, error):
        self.error, self.calls = error, []

    def scalars(self, step, metrics):
        self.calls.append(step)
        raise self.error

    def image(self, name, pixels):
        raise self.error

    def close(self):
        self.calls.append("close")


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(loggers, "_REGISTERED", {})
    return loggers.register_logger


def test_a_logger_that_fails_is_dropped(register, tmp_path, caplog):
    failing, other = Failing(ConnectionError("no\nserver")), Failing(None)
    register("failing", lambda run: failing)
    register("full", lambda run: other)
    opened = open_loggers(["failing", "full"], LoggedRun(tmp_path, 0, {}))
    for step in (1, 2):
        opened[0].scalars(step, {})
    opened[0].close()
    assert failing.calls == [1]
    assert caplog.messages == [
        "the logger 'failing' has failed (ConnectionError: no); the run continues without it"
    ]
    other.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        opened[1].scalars(1, {})


def test_a_logger_that_cannot_begin(register, tmp_path):
    def refused(run):
        raise PermissionError("not logged in")

    first = Failing(None)
    register("first", lambda run: first)
    register("refused", refused)
    with pytest.raises(ConfigError, match="'refused' cannot begin: PermissionError: not logged in"):
        open_loggers(["first", "refused"], LoggedRun(tmp_path, 0, {}))
    assert first.calls == ["close"]
