"""Starting a run from weights."""

import dataclasses
import json
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests.train.test_run import at_step
from vig_jax.config import parse
from vig_jax.errors import CheckpointError, WeightsError
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.train.checkpoint import RunInfo
from vig_jax.train.experiment import Experiment
from vig_jax.train.loop import run
from vig_jax.weights.fit import WeightFile, Weights, fit_to_config
from vig_jax.weights.initial import with_sizes_of_start
from vig_jax.weights.run_folder import save_weights


def start(config):
    return Experiment.from_config(config).initial_variables()


def test_first_state(weights, tiny):
    file, theirs = weights
    experiment = Experiment.from_config(tiny(init_weights=str(file)))
    variables, line = experiment.initial_variables()
    assert line == (
        f"starting from {file}; a new head for 2 classes, as the file's is for 10: it must be "
        "trained; position embedding resized from 4x4 to 2x2"
    )
    state = experiment.state_from(variables)
    chex.assert_trees_all_equal(state.params, state.ema_params)
    expected = jax.tree.map(np.asarray, theirs)
    table = resize_pos_embed(jnp.asarray(expected["pos_embed"]), (2, 2))
    expected["pos_embed"] = np.asarray(table).reshape(1, 4, 32)
    head = jax.tree.map(np.asarray, state.params["head"])
    assert head["kernel"].shape == (32, 2)
    assert 0.01 < head["kernel"].std() < 0.03
    chex.assert_trees_all_equal(state.params | {"head": None}, expected | {"head": None})
    fresh = experiment.new_state()
    chex.assert_trees_all_equal(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0
    other, _ = start(tiny(init_weights=str(file), seed=1))
    assert (other["params"]["head"]["kernel"] != head["kernel"]).all()


@pytest.mark.slow
def test_interrupted_run_resumes_without_the_file(weights, tiny, tmp_path, monkeypatch, capsys):
    file, _ = weights
    config, workdir = tiny(init_weights=str(file)), tmp_path / "run"
    for _ in range(2):
        with monkeypatch.context() as patch:
            at_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
            run(config, workdir)
        file.unlink(missing_ok=True)
    message = capsys.readouterr().err
    assert message.count(f"starting from {file}; a new head for 2 classes") == 1
    assert "resuming from the checkpoint of step 1 of 12" in message
    with pytest.raises(CheckpointError, match=r"config\.init_weights: .* there, None now"):
        run(tiny(), workdir)
    # A run of ours is a start as well.
    variables, line = start(tiny(init_weights=str(workdir)))
    assert line == f"starting from {workdir}, ema_params"
    chex.assert_trees_all_equal(variables, load_for_inference(workdir).variables)


def test_classes_of_a_run_are_matched_by_name():
    values = np.arange(3 * 4, dtype=np.float32).reshape(3, 4)
    state_dict = {"head.weight": values, "head.bias": values[:, 0]}
    file = WeightFile(state_dict, class_names=("cat", "dog", "emu"))
    model = parse(common.get_config()).model
    seen = []

    def fit(tensors, name, *, num_classes, outputs, **_):
        seen.append(outputs)
        return Weights({}, num_classes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vig_jax.weights.fit.fit", fit)
        for names in (("cat", "dog", "emu"), ("emu", "cat"), ("cat", "cow"), ()):
            classes = dataclasses.replace(model, num_classes=len(names) or 3)
            fit_to_config(file, "runs/x", classes, class_names=names)
    assert seen == [None, [2, 0], [], None]


@pytest.mark.parametrize("change", [{}, {"model__embed_dim": 64}])
def test_misfits_are_reported_before_anything_is_written(weights, tiny, tmp_path, change):
    file, _ = weights
    path = str(file) if change else str(tmp_path / "absent.pth")
    message = "do not fit" if change else r"config\.init_weights=.*no weight file"
    with pytest.raises(WeightsError, match=message):
        run(tiny(init_weights=path, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_configs_from_before_some_settings_existed():
    stored = json.loads(json.dumps(common.get_config().to_dict()))
    del stored["init_weights"], stored["model"]["merge_scale"]
    assert parse(stored).init_weights is None


def test_sizes_are_those_of_the_run_to_start_from(tiny, tmp_path):
    def save(workdir, config):
        info = RunInfo(config, {"class_names": ("a", "b")}, "", "", "top1")
        save_weights(workdir, {"params": {"x": np.zeros(1)}}, info.to_json(0, {}))

    start, workdir = tmp_path / "start", tmp_path / "run"
    save(start, tiny())
    unset = dict.fromkeys(("model__patch_size", "model__embed_dim", "model__depth"))
    config = tiny(init_weights=str(start), model__num_heads=2, model__img_size=None, **unset)
    model = with_sizes_of_start(config, workdir).model
    sizes = model.patch_size, model.embed_dim, model.depth, model.num_heads, model.img_size
    assert sizes == (8, 32, 1, 2, None)  # what is set counts; the images give the last
    # A resumed run has its own sizes.
    save(workdir, tiny(model__embed_dim=64))
    start.rename(tmp_path / "gone")
    assert with_sizes_of_start(config, workdir).model.embed_dim == 64
    assert with_sizes_of_start(tiny(**unset), workdir).model.embed_dim is None
    with pytest.raises(WeightsError, match=r"config\.init_weights=.*holds no finished checkpoint"):
        with_sizes_of_start(dataclasses.replace(config, init_weights=str(tmp_path)), start)


def test_what_the_weights_leave_out_keeps_its_random_initialisation(weights, tiny):
    file, _ = weights
    experiment = Experiment.from_config(tiny(init_weights=str(file)))
    variables, _ = experiment.initial_variables()
    del variables["params"]["blocks_0"]["mlp"]
    state, fresh = experiment.state_from(variables), experiment.new_state()
    mlp = fresh.params["blocks_0"].pop("mlp")
    for params in (state.params, state.ema_params):
        chex.assert_trees_all_equal(params["blocks_0"].pop("mlp"), mlp)
        chex.assert_trees_all_equal(params, variables["params"])
