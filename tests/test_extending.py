"""The plugin of docs/extending.md works; plugins are imported only if the command names them."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vig_jax
from vig_jax import models
from vig_jax.augment import register_augmentation
from vig_jax.augment import registry as augmentations
from vig_jax.cli.main import main
from vig_jax.config import import_plugins, parse, schema
from vig_jax.data import register_dataset
from vig_jax.data.datasets import registry as datasets
from vig_jax.errors import ConfigError
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.models import ViG, variants
from vig_jax.models.from_config import model_from_config
from vig_jax.tasks import registry as tasks
from vig_jax.tasks.classification import ENTRY
from vig_jax.train import loop
from vig_jax.train.logging import loggers
from vig_jax.weights.hub_folder import WEIGHTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
MODULES = ("stripes", "stripes_plugin", "stripes_page")
REGISTRIES = (
    *(
        datasets._REGISTERED,
        variants._REGISTERED,
        augmentations._AUGMENTATIONS,
        loggers._REGISTERED,
    ),
    *(tasks._REGISTERED, schema.TASK_CONFIGS),
)


@contextlib.contextmanager
def restored():
    """Takes back what is registered and imported meanwhile."""
    copies = [dict(registry) for registry in REGISTRIES]
    try:
        yield
    finally:
        for registry, copy in zip(REGISTRIES, copies, strict=True):
            registry.clear()
            registry.update(copy)
        for module in MODULES:
            sys.modules.pop(module, None)


@pytest.fixture(autouse=True)
def _restored():
    with restored():
        yield


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The example's files, in a folder that modules are imported from."""
    folder = tmp_path_factory.mktemp("example")
    files = re.findall(r"`(\w+\.py)`.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in files] == [f"{module}.py" for module in MODULES]
    for name, code in files:
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of the example. Its plugin is imported no more."""
    workdir = tmp_path_factory.mktemp("run")
    with restored():
        values = importlib.import_module("stripes_page").get_config()
        values.train.update({"compilation_cache": "", "log_every_steps": 16})
        values.data.workers = 0  # they take seconds to begin
        values.model.gla_implementation = "reference"  # compiles fastest
        with pytest.raises(ConfigError, match="the config uses code that was not imported"):
            parse(values)
        import_plugins(values.plugins)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "write_report", lambda workdir: [])  # `vig report` draws it
            loop.run(parse(values), workdir)
    return workdir


def test_the_example_trains(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval/top1"] > 0.9
    assert {"train/loss", "train/confidence"} <= lines[-2].keys()
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[1] < losses[0]
    in_csv = [line.split(",") for line in (trained / "metrics.csv").read_text().splitlines()]
    assert ["16", "train/loss", f"{losses[0]}"] in in_csv
    assert list((trained / "tensorboard").iterdir())
    assert json.loads((trained / "config.json").read_text())["config"]["plugins"] == [MODULES[1]]


def test_the_example_is_evaluated_reported_and_predicts(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--plugin", "stripes_plugin"]) == 0
    assert "top1 1.0000" in capsys.readouterr().out
    rows = np.tile(np.uint8([0, 255])[:, None, None], (16, 32, 3))
    Image.fromarray(rows).save(tmp_path / "photo.png")
    assert main(["predict", str(trained), str(tmp_path / "photo.png")]) == 0
    assert "photo.png: rows" in capsys.readouterr().out
    assert main(["report", str(trained)]) == 0


@pytest.mark.parametrize("command", ["evaluate", "predict", "convert", "export", "report"])
def test_opening_a_run_imports_nothing(command, trained, tmp_path, capsys):
    more = {"predict": "photo.png", "convert": "a.safetensors", "export": "a.stablehlo"}
    more = [str(tmp_path / more[command])] if command in more else []
    (tmp_path / "photo.png").touch()
    assert main([command, str(trained), *more]) == 1
    printed = capsys.readouterr().err
    assert "code that was not imported: if you trust it, add --plugin stripes_plugin" in printed
    assert not set(MODULES) & sys.modules.keys()


def test_hub_folders_name_the_plugins_that_they_need(trained, tmp_path):
    """Readers need the model of a run, but neither its data set nor its augmentation."""
    with restored():
        import_plugins(["stripes_plugin"])
        values = importlib.import_module("stripes_page").get_config()
        values.task = {"name": "classification"}
        for name, needed in (("vig_nano", ("stripes_plugin",)), ("vig_t", ())):
            values.model.name = name
            config = parse(values)
            size = {"img_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 2}
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, **size))
            model = model_from_config(config.model)
            shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
            variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))
            loaded = LoadedModel(config, variables, 0, {}, None, "a model")
            vig_jax.save_pretrained(tmp_path / name, loaded)
            stored = json.loads((tmp_path / name / "config.json").read_text())["config"]
            assert tuple(stored["plugins"]) == needed
            assert vig_jax.from_pretrained(tmp_path / name).config.plugins == needed
    assert vig_jax.from_pretrained(tmp_path / "vig_t").config.data.augmentations == ()
    with pytest.raises(ConfigError, match="add --plugin stripes_plugin"):
        vig_jax.from_pretrained(tmp_path / "vig_nano")
    assert "stripes_plugin" not in sys.modules


def test_a_task_of_a_plugin_becomes_a_hub_folder(trained, tmp_path, capsys):
    """Its model has upstream's names. Readers name the plugin."""
    folder, plugin = tmp_path / "hub", ["--plugin", "stripes_plugin"]
    with restored():
        command = ["convert", str(trained), str(folder), "--to", "hub", "--verify"]
        assert main([*command, *plugin]) == 0
        assert "verified    logits of random images" in capsys.readouterr().out
        assert main(["evaluate", str(folder), *plugin]) == 0
        assert "top1 1.0000" in capsys.readouterr().out
        params = vig_jax.load_weights(folder)["params"]
        assert params["head"]["kernel"].shape == (32, 2)
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", WEIGHTS}
    card = (folder / "README.md").read_text()
    assert "import stripes_plugin" in card
    assert "vig predict PATH photo.jpg --plugin stripes_plugin" in card
    assert "pipeline_tag" not in card
    assert main(["evaluate", str(folder)]) == 1
    assert "if you trust it, add --plugin stripes_plugin" in capsys.readouterr().err
    assert not set(MODULES) & sys.modules.keys()


def test_commands_for_data_sets_of_plugins(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    plugin = ["--plugin", "stripes_plugin"]
    assert main(["data", "inspect", "stripes", *plugin]) == 0
    printed = capsys.readouterr().out
    assert "train: 256 images, 2 classes" in printed
    assert "eval: 64 images, 2 classes" in printed
    options = ["--limit", "6", "--workers", "0", "--shards", "1"]
    assert main(["data", "convert", "stripes", str(tmp_path / "records"), *options, *plugin]) == 0
    assert "train: 6 images in 1 shards" in capsys.readouterr().out
    assert main(["data", "benchmark", "stripes", "--images", "2", *plugin]) == 0
    assert main(["data", "inspect", "anywhere", "--from", "stripes", *plugin]) == 0
    capsys.readouterr()
    for more, message in (
        (["stripes", "--val-fraction", "0.5"], "--val-fraction: the plugin of stripes has its"),
        (["stripes", "--from", "stripe"], "--from stripe: did you mean 'stripes'"),
    ):
        assert main(["data", "inspect", *more, *plugin]) == 1
        assert message in capsys.readouterr().err


def test_the_data_set_of_the_example_needs_no_jax(folder):
    """Workers import its module."""
    code = "import sys; sys.modules['jax'] = None; import stripes; stripes.Stripes('train')[0]"
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "there is no module 'broken'; name one that is installed, or that lies in the folder"),
        ("x = 1\nx = y\n", r"cannot be imported: NameError: .*'y'.* \(.*broken.py, line 2\)"),
        ("import absent_package\n", "ModuleNotFoundError: No module named 'absent_package'"),
        ("def f(:\n", "SyntaxError"),
        ("from vig_jax.data import *\nregister_dataset('coco', open)\n", "'coco' is the name of a"),
    ],
)
def test_a_plugin_that_cannot_be_imported(code, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command appends the present folder
    if code:
        (tmp_path / "broken.py").write_text(code)
    assert main(["report", "nowhere", "--plugin", "broken"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("vig report: plugin broken")
    assert printed.count("\n") == 1
    assert re.search(message, printed)


def test_names_are_registered_once():
    kinds = {
        "model": (models.register_model, ("vig_t", "mine"), ViG),
        "augmentation": (register_augmentation, ("mine",), lambda key, images: images),
        "logger": (loggers.register_logger, ("wandb", "mine"), open),
        "task": (tasks.register_task, ("detection", "mine"), ENTRY),
        "data set": (register_dataset, ("fashion_mnist", "mine"), open),
    }
    for kind, (register, names, value) in kinds.items():
        register("mine", value)
        for name in names:
            with pytest.raises(ConfigError, match=f"'{name}' is the name of an? {kind} already"):
                register(name, value)
    with pytest.raises(ConfigError, match="ViG has no setting 'width'"):
        models.register_model("other", ViG, width=3)
