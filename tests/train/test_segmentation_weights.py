"""Runs of semantic segmentation that start from weights, and their conversion to files and back."""

import atexit
import dataclasses
import functools
import json
import shutil
import signal
import tempfile
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from tests.train.test_run import at_step
from tests.weights import torch_writer
from vig_jax.cli.main import main
from vig_jax.config import parse, recipes
from vig_jax.data import open_dataset
from vig_jax.errors import DataSetError, WeightsError
from vig_jax.inference.convert import convert
from vig_jax.inference.loaded_model import load_for_inference, restore_weights
from vig_jax.models import create_model
from vig_jax.tasks.segmentation.build import match_data
from vig_jax.train.checkpoint import RunInfo
from vig_jax.train.experiment import Experiment
from vig_jax.train.loop import run
from vig_jax.weights import mmseg, upstream
from vig_jax.weights.initial import with_sizes_of_start
from vig_jax.weights.load import save_safetensors
from vig_jax.weights.run_folder import save_weights

SIZES = {
    "vig_t": {"embed_dim": 16, "depth": 2, "num_heads": 1, "patch_size": 4},
    "vig_h_t": {"embed_dims": (16,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4},
}
NAMES = ("ground", "sky", "tree")
CLASSIFIER = {"embed_dim": 16, "depth": 2, "num_heads": 1, "patch_size": 4, "img_size": 16}

pytestmark = pytest.mark.usefixtures("compilation_cache")


@functools.cache
def data_folder():
    """Four images of 32 x 32 pixels and their masks for training, and two for evaluation."""
    root = Path(tempfile.mkdtemp(prefix="segmentation_weights"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind, high, shape in (("images", 256, (32, 32, 3)), ("annotations", 3, (32, 32))):
            folder = root / kind / split
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, high, shape, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def config(name="vig_t", **changes):
    """A run of two steps on those images, with changes by dotted key."""
    values = recipes.ade20k(name)
    values.model.update(SIZES[name], dtype="float32", gla_implementation="reference")
    values.task.update(channels=8, aux_channels=4, reduce_zero_label=False, photometric=False)
    values.task.update(resize_scale=(64, 32), resize_ratio=(1.0, 1.0), eval_stride=32)
    values.data.update(source="mask_folder", path=str(data_folder()), image_size=32, workers=0)
    values.optimizer.update(warmup_steps=1, layer_decay=1.0)
    values.train.update(batch_size=2, steps=2, eval_every_steps=0, checkpoint_every_steps=1)
    values.train.update(ema_decay=0.5, log_every_steps=1, compilation_cache="")
    for key, value in changes.items():
        *group, entry = key.split("__")
        (values[group[0]] if group else values)[entry] = value
    return parse(values)


@functools.cache
def experiment_of(name="vig_t"):
    """The experiment of `config`, traced once."""
    return Experiment.from_config(config(name))


@functools.cache
def classifier(seed=0):
    """Parameters of a classifier of ten classes."""
    model = create_model("vig_t", num_classes=10, **CLASSIFIER)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: generator.normal(0, 0.1, x.shape).astype(np.float32), shapes)


def random_variables(experiment):
    """Variables of the run's model in which no two arrays are alike."""
    state = jax.eval_shape(experiment.new_state)
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: generator.uniform(0.5, 1, x.shape).astype(np.float32), dict(state.variables)
    )


def as_run(experiment, folder, metadata=None):
    """Writes random variables as the checkpoint of a run, raw and EMA; returns both."""
    raw = random_variables(experiment)
    ema = jax.tree.map(lambda x: x * np.float32(0.5), raw)
    info = dataclasses.replace(experiment.info, **({"metadata": metadata} if metadata else {}))
    items = {
        f"{prefix}{item}": tree
        for prefix, variables in (("", raw), ("ema_", ema))
        for item, tree in (
            ("params", variables["params"]),
            ("mutable", {"batch_stats": variables["batch_stats"]}),
        )
    }
    save_weights(folder, items, info.to_json(0, {}))
    return raw, ema


@pytest.fixture(params=["pth", "run"])
def start(request, tmp_path):
    """A classifier as an upstream file and as a run, and its parameters."""
    params = classifier()
    if request.param == "pth":
        file = tmp_path / "vig_t.pth"
        torch_writer.save({"model": torch_writer.state_dict(upstream.from_params(params))}, file)
        return file, params
    values = recipes.imagenet("vig_t")
    values.model.update(CLASSIFIER, num_classes=10)
    info = RunInfo(parse(values), {"class_names": tuple("abcdefghij")}, "", "", "top1")
    save_weights(tmp_path / "classifier", {"params": params}, info.to_json(0, {}))
    return tmp_path / "classifier", params


def test_start_from_a_classifier(start):
    path, params = start
    experiment = Experiment.from_config(config(init_weights=str(path)))
    variables, line = experiment.initial_variables()
    assert line.startswith(f"starting from {path}")
    assert line.endswith(
        "; the backbone is taken, the classifier's head and last norm are not; position embedding "
        "resized from 4x4 to 8x8; neck and heads are new: they must be trained"
    )
    state, fresh = experiment.state_from(variables), experiment.new_state()
    kept = {name: tree for name, tree in params.items() if name not in ("head", "norm")}
    for found in (state.params, state.ema_params):
        backbone = dict(found["backbone"])
        assert backbone.pop("pos_embed").shape == (1, 64, 16)
        chex.assert_trees_all_equal(backbone, _without(kept))
        for part in ("neck", "decode_head", "auxiliary_head"):
            chex.assert_trees_all_equal(found[part], fresh.params[part])
    chex.assert_trees_all_equal(state.mutable, fresh.mutable)
    chex.assert_trees_all_equal(state.ema_mutable, fresh.mutable)


def _without(params):
    return {name: tree for name, tree in params.items() if name != "pos_embed"}


def test_sizes_are_those_of_the_classifier(start, tmp_path):
    path, _ = start
    unset = dict.fromkeys(("model__patch_size", "model__embed_dim", "model__depth"))
    model = with_sizes_of_start(config(init_weights=str(path), **unset), tmp_path / "new").model
    expected = (4, 16, 2) if path.is_dir() else (None, None, None)
    assert (model.patch_size, model.embed_dim, model.depth) == expected


def test_start_from_a_segmenter_of_other_classes(tmp_path):
    experiment = experiment_of()
    others = {**experiment.info.metadata, "class_names": (*NAMES[:-1], "hat")}
    _, ema = as_run(experiment, tmp_path / "start", others)
    experiment = Experiment.from_config(config(init_weights=str(tmp_path / "start")))
    variables, line = experiment.initial_variables()
    assert line == (
        f"starting from {tmp_path / 'start'}, ema_params; a new conv_seg for 3 classes, as the "
        "data set has other classes: it must be trained"
    )
    state, fresh = experiment.state_from(variables), experiment.new_state()
    for head in ("decode_head", "auxiliary_head"):
        new = state.params[head].pop("conv_seg")
        chex.assert_trees_all_equal(new, fresh.params[head]["conv_seg"])
        ema["params"][head].pop("conv_seg")
    chex.assert_trees_all_equal(state.params, ema["params"])
    chex.assert_trees_all_equal(state.mutable, {"batch_stats": ema["batch_stats"]})
    chex.assert_trees_all_equal(state.ema_mutable, state.mutable)


@pytest.mark.slow
def test_resumed_run_needs_the_start_no_longer(tmp_path, monkeypatch, capsys):
    file, workdir = tmp_path / "vig_t.safetensors", tmp_path / "run"
    save_safetensors(classifier(), file, model_name="vig_t", averaged=None)
    settings = config(
        init_weights=str(file), optimizer__freeze="backbone", optimizer__layer_decay=0.5
    )
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
        run(settings, workdir)
    file.unlink()
    run(settings, workdir)
    assert "resuming from the checkpoint of step 1 of 2" in capsys.readouterr().err
    expected = {k: v for k, v in _without(classifier()).items() if k not in ("head", "norm")}
    for ema in (False, True):
        variables = load_for_inference(workdir / "checkpoints" / "2", ema=ema).variables
        variables = jax.device_get(variables)
        chex.assert_trees_all_equal(_without(variables["params"]["backbone"]), expected)
        assert (variables["batch_stats"]["neck"]["upsample_4x_1"]["mean"] != 0).any()
        assert (variables["params"]["auxiliary_head"]["conv_seg"]["bias"] != 0).any()


@pytest.mark.parametrize("name", SIZES)
def test_conversion_both_ways(name, tmp_path):
    experiment = experiment_of(name)
    data = dataclasses.replace(experiment.config.data, mean=(0.1, 0.2, 0.3))
    info = dataclasses.replace(
        experiment.info, config=dataclasses.replace(experiment.config, data=data)
    )
    _, ema = as_run(dataclasses.replace(experiment, info=info), tmp_path / "run")
    file, folder = tmp_path / "segmenter.safetensors", tmp_path / "folder"
    verify = name == "vig_t"  # it compiles the model
    (report,) = convert(tmp_path / "run", file, to="safetensors", verify=verify)
    assert report.difference == (0 if verify else None)
    assert "3 classes" in str(report)
    settings = SIZES[name]
    (back,) = convert(file, folder, to="checkpoint", model_name=name, settings=settings)
    assert back.sha256 == report.sha256
    loaded = load_for_inference(folder)
    chex.assert_trees_all_equal(loaded.variables, ema)
    before = load_for_inference(tmp_path / "run")
    assert loaded.config.task == before.config.task
    assert loaded.config.data.image_size == 32
    assert loaded.config.data.mean == before.config.data.mean != config().data.mean
    assert tuple(loaded.metadata["class_names"]) == tuple(before.metadata["class_names"])
    assert loaded.metadata["palette"] == before.metadata["palette"]
    assert "EMA" not in loaded.description
    assert str(file) in loaded.description


def test_files_of_mmsegmentation(tmp_path, capsys):
    """Without settings in the file its names, shapes and class names say what the model is."""
    experiment = Experiment.from_config(config(task__aux_channels=0, task__norm_last=True))
    variables = random_variables(experiment)
    file = tmp_path / "iter_160000.pth"
    names = ["a", "b", "c"]
    saved = {
        "state_dict": torch_writer.state_dict(mmseg.from_variables(variables)),
        "meta": {"dataset_meta": {"classes": names}},
    }
    torch_writer.save(saved, file)
    sizes = [f"--set={key}={value}" for key, value in SIZES["vig_t"].items()]
    target = tmp_path / "folder"
    assert main(["convert", str(file), str(target), "--model", "vig_t", *sizes]) == 0
    assert "unmatched   none" in capsys.readouterr().out
    loaded = load_for_inference(target)
    chex.assert_trees_all_equal(loaded.variables, variables)
    task, model = loaded.config.task, loaded.config.model
    assert (task.channels, task.aux_channels, task.norm_last) == (8, 0, True)
    assert (task.reduce_zero_label, task.resize_scale) == (False, (128, 32))
    assert (model.num_classes, model.img_size, loaded.config.data.image_size) == (3, 32, 32)
    assert list(loaded.metadata["class_names"]) == names
    settings = SIZES["vig_t"] | {"eval_mode": "whole"}
    restored = restore_weights(file, "vig_t", settings=settings, image_size=48)
    assert restored.config.task.eval_mode == "whole"
    assert restored.variables["params"]["backbone"]["pos_embed"].shape == (1, 144, 16)
    assert "position embedding resized from 8x8 to 12x12" in restored.description


def test_misfits_are_reported(tmp_path):
    as_run(experiment_of(), tmp_path / "start")
    for changes, message in (
        ({"task__aux_channels": 8}, r"shapes differ.* \(6\): auxiliary_head"),
        ({"model__embed_dim": 32}, r"shapes differ.* backbone\."),
    ):
        changed = config(init_weights=str(tmp_path / "start"), **changes)
        with pytest.raises(WeightsError, match=message):
            run(changed, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trained", "classes", "message"),
    [
        ({"class_names": NAMES}, 3, None),
        ({}, 3, None),  # a file without names
        ({}, 4, "has 3 classes; the model has 4, which its weights do not name"),
        ({"class_names": ("sky", "ground", "tree")}, 3, "class 0 is ground, not sky"),
        ({"class_names": NAMES, "raw_labels": [7, 8, 9]}, 3, "other label numbers in its masks"),
    ],
)
def test_data_to_evaluate_on(trained, classes, message):
    settings = config(model__num_classes=classes)
    dataset = open_dataset(settings.data, "eval")
    if message is None:
        assert match_data(trained, dataset, settings, None) is dataset
        return
    with pytest.raises(DataSetError, match=message):
        match_data(trained, dataset, settings, None)


@pytest.mark.slow
def test_evaluation_of_a_file_without_names(tmp_path, capsys):
    experiment = experiment_of("vig_h_t")
    variables = random_variables(experiment)
    file = tmp_path / "segmenter.pth"
    torch_writer.save(torch_writer.state_dict(mmseg.from_variables(variables)), file)
    sizes = [f"--set={key}={value}" for key, value in SIZES["vig_h_t"].items()]
    options = ["--data-source", "mask_folder", "--batch-size", "2", "--workers", "0"]
    options += ["--data-path", str(data_folder()), "--json", str(tmp_path / "metrics.json")]
    model = ["--model", "vig_h_t", *sizes]
    assert main(["evaluate", "--weights", str(file), *model, "--image-size", "32", *options]) == 0
    assert "miou" in capsys.readouterr().out
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["miou"] <= 1
    assert main(["evaluate", "--weights", str(file), *model, "--set=chanels=8", *options]) == 1
    assert "did you mean 'channels'?" in capsys.readouterr().err
    assert main(["evaluate", "--weights", str(file), *model, "--image-size=32x64", *options]) == 1
    assert "32x64 is not square" in capsys.readouterr().err
