"""Weight files of segmenters: mmsegmentation's checkpoints, ours, and those of classifiers."""

import logging

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import vig_jax
from tests.weights import torch_writer
from tests.weights.dense_case import SEGMENTERS, segmenter
from vig_jax.errors import WeightsError
from vig_jax.weights import mmseg, upstream
from vig_jax.weights.fit import WeightFile, fit
from vig_jax.weights.fit_dense import fit_dense
from vig_jax.weights.load import read_weight_file, save_safetensors

META = {
    "dataset_meta": {"classes": ("sky", "road", "tree"), "palette": [[0, 0, 255]] * 3},
    "cfg": "model = dict()",
}


def tensors(state_dict, prefix=""):
    return torch_writer.state_dict({prefix + key: value for key, value in state_dict.items()})


def scaled(variables, factor):
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), variables)


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_load_to_the_bit(tmp_path, name, suffix):
    _, variables = segmenter(name)
    file = tmp_path / f"segmenter{suffix}"
    if suffix == ".pth":
        saved = {"state_dict": tensors(mmseg.from_variables(variables)), "meta": META}
        torch_writer.save(saved | {"optimizer": {"state": {}}}, file)
    else:
        params, stats = variables["params"], variables["batch_stats"]
        mutable = {"batch_stats": stats}
        save_safetensors(params, file, model_name=name, averaged=None, mutable=mutable)
    sizes = {k: v for k, v in SEGMENTERS[name].items() if k != "num_classes"}  # that of the file
    chex.assert_trees_all_equal(vig_jax.load_weights(file, name, **sizes), variables)


def test_mmengine_keeps_ema_weights_under_state_dict(tmp_path):
    _, averaged = segmenter("vig_t")
    raw = scaled(averaged, 0.5)
    file = tmp_path / "iter_160000.pth"
    steps = {"steps": torch_writer.tensor(np.array(7))}
    saved = {
        "state_dict": tensors(mmseg.from_variables(averaged)),
        "ema_state_dict": tensors(mmseg.from_variables(raw), "module.") | steps,
        "meta": META,
    }
    torch_writer.save(saved, file)
    for ema, expected in ((None, averaged), (True, averaged), (False, raw)):
        read = read_weight_file(file, ema=ema)
        assert read.averaged is (ema is not False)
        assert read.class_names == ("sky", "road", "tree")
        assert read.metadata["palette"] == ((0, 0, 255),) * 3
        found = vig_jax.load_weights(file, "vig_t", ema=ema, **SEGMENTERS["vig_t"])
        chex.assert_trees_all_equal(found, expected)


def test_wrapped_models_and_old_copies(tmp_path, caplog):
    _, variables = segmenter("vig_t")
    state_dict = mmseg.from_variables(variables)
    copies = {"ema_" + key.replace(".", "_"): value for key, value in state_dict.items()}
    file = tmp_path / "old.pth"
    saved = {
        "state_dict": tensors(state_dict | copies, "module."),
        "meta": {"CLASSES": ["sky", "road", "tree"], "PALETTE": [[0, 0, 300]] * 3},
    }
    torch_writer.save(saved, file)
    with caplog.at_level(logging.WARNING):
        found = vig_jax.load_weights(file, "vig_t", ema=True, **SEGMENTERS["vig_t"])
    chex.assert_trees_all_equal(found, variables)
    assert f"{len(copies)} arrays called ema_* are not used" in caplog.text
    assert "has no 'ema_state_dict'" in caplog.text
    metadata = read_weight_file(file).metadata
    assert metadata == {"class_names": ("sky", "road", "tree")}  # no colour has a level of 300


def test_other_classes_and_no_auxiliary_head(tmp_path, caplog):
    _, variables = segmenter("vig_h_t")
    file = tmp_path / "segmenter.safetensors"
    safetensors.numpy.save_file(mmseg.from_variables(variables), file)
    with caplog.at_level(logging.WARNING):
        sizes = SEGMENTERS["vig_h_t"] | {"num_classes": 5, "aux_channels": 0}
        found = vig_jax.load_weights(file, "vig_h_t", **sizes)
        again = vig_jax.load_weights(file, "vig_h_t", **sizes)
    assert "the auxiliary head is not used" in caplog.text
    assert "a new conv_seg for 5 classes, as the file's is for 3: it must be trained" in caplog.text
    chex.assert_trees_all_equal(found, again)
    model = vig_jax.create_segmenter("vig_h_t", **sizes)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, dict(shapes))
    kernel = found["params"]["decode_head"].pop("conv_seg")["kernel"]
    assert 0.005 < kernel.std() < 0.02
    head = {k: v for k, v in variables["params"]["decode_head"].items() if k != "conv_seg"}
    chex.assert_trees_all_equal(found["params"]["decode_head"], head)
    chex.assert_trees_all_equal(
        found["batch_stats"]["decode_head"], variables["batch_stats"]["decode_head"]
    )


def test_a_model_with_an_auxiliary_head_needs_one_in_the_file():
    model, variables = segmenter("vig_h_t")
    state_dict = mmseg.from_variables(variables)
    without = {k: v for k, v in state_dict.items() if not k.startswith("auxiliary_head.")}
    with pytest.raises(WeightsError, match=r"aux_channels \(0: .*missing \(7\): auxiliary_head"):
        fit_dense(WeightFile(without), "vig_h_t", model)
    found, notes = fit_dense(WeightFile(without), "vig_h_t", model.clone(aux_channels=0))
    assert notes == ()
    assert found["params"].keys() == {"backbone", "decode_head"}


def test_classes_are_matched_by_name():
    model, variables = segmenter("vig_h_t")
    file = WeightFile(mmseg.from_variables(variables), class_names=("sky", "road", "tree"))
    bias = variables["params"]["auxiliary_head"]["conv_seg"]["bias"]
    found, notes = fit_dense(file, "vig_h_t", model, class_names=("tree", "sky", "road"))
    assert notes == ("the outputs of conv_seg are matched to the data set's classes by name",)
    np.testing.assert_array_equal(
        found["params"]["auxiliary_head"]["conv_seg"]["bias"], bias[[2, 0, 1]]
    )
    kernel = variables["params"]["decode_head"]["conv_seg"]["kernel"]
    np.testing.assert_array_equal(
        found["params"]["decode_head"]["conv_seg"]["kernel"], kernel[:, [2, 0, 1]]
    )
    found, notes = fit_dense(file, "vig_h_t", model, class_names=("tree", "sky", "car"))
    assert "a new conv_seg for 3 classes, as the data set has other classes" in notes[0]
    for head in ("decode_head", "auxiliary_head"):
        assert "conv_seg" not in found["params"][head]
    found, notes = fit_dense(file, "vig_h_t", model, class_names=("sky", "road", "tree"))
    assert notes == ()
    chex.assert_trees_all_equal(found, variables)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_classifiers_give_the_backbone(name):
    model, variables = segmenter(name)
    backbone = {k: v for k, v in variables["params"]["backbone"].items() if "out_norm" not in k}
    width = model.stage_sizes[-1][0]
    norm = {"scale": np.full(width, 2, np.float32), "bias": np.ones(width, np.float32)}
    if name == "vig_t":
        del norm["bias"]
    head = {"kernel": np.ones((width, 10), np.float32), "bias": np.ones(10, np.float32)}
    file = WeightFile(upstream.from_params(backbone | {"norm": norm, "head": head}))
    found, notes = fit_dense(file, name, model)
    assert notes[0] == "the backbone is taken, the classifier's head and last norm are not"
    assert "new: they must be trained" in notes[1]
    assert found.keys() == {"params"}
    assert found["params"].keys() == {"backbone"}
    for i in range(4 if name == "vig_h_t" else 0):  # upstream's classifiers have none
        out_norm = found["params"]["backbone"].pop(f"out_norm_{i}")
        np.testing.assert_array_equal(out_norm["scale"], np.ones(model.stage_sizes[i][0]))
        np.testing.assert_array_equal(out_norm["bias"], np.zeros(model.stage_sizes[i][0]))
    chex.assert_trees_all_equal(found["params"]["backbone"], backbone)
    if name == "vig_t":
        found, _ = fit_dense(file, name, model.clone(norm_last=True))
        chex.assert_trees_all_equal(found["params"]["backbone"]["norm"], norm)


def test_position_embedding_is_resized_with_a_note():
    _, variables = segmenter("vig_t")
    larger = vig_jax.create_segmenter("vig_t", **(SEGMENTERS["vig_t"] | {"img_size": 64}))
    found, notes = fit_dense(WeightFile(mmseg.from_variables(variables)), "vig_t", larger)
    assert notes == ("position embedding resized from 2x2 to 4x4",)
    assert found["params"]["backbone"]["pos_embed"].shape == (1, 16, 16)
    backbone = WeightFile(upstream.from_params(variables["params"]["backbone"]))
    assert "position embedding resized from 2x2 to 4x4" in fit_dense(backbone, "vig_t", larger)[1]


def test_a_classifier_does_not_take_a_segmenter_and_damage_is_refused(tmp_path):
    model, variables = segmenter("vig_h_t")
    state_dict = mmseg.from_variables(variables)
    file = tmp_path / "segmenter.safetensors"
    state_dict["decode_head.bottleneck.bn.running_var"] = np.full(8, np.nan, np.float32)
    safetensors.numpy.save_file(state_dict, file)
    with pytest.raises(WeightsError, match=r"NaN or infinite: decode_head\.bottleneck\.bn\.run"):
        vig_jax.load_weights(file, "vig_h_t", **SEGMENTERS["vig_h_t"])
    with pytest.raises(WeightsError, match="those of a segmenter"):
        fit(state_dict, "vig_h_t")
    integers = {k: v.astype(np.int32) if k.endswith("bias") else v for k, v in state_dict.items()}
    with pytest.raises(WeightsError, match="is int32; weights must be floating-point"):
        fit_dense(WeightFile(integers), "vig_h_t", model)


def test_sizes_that_differ_are_named():
    _, variables = segmenter("vig_h_t")
    file = WeightFile(mmseg.from_variables(variables))
    sizes = SEGMENTERS["vig_h_t"] | {"channels": 16, "aux_channels": 8, "embed_dims": (32,) * 4}
    with pytest.raises(WeightsError, match="shapes differ") as error:
        fit_dense(file, "vig_h_t", vig_jax.create_segmenter("vig_h_t", **sizes))
    assert (
        "The file's heads have aux_channels=4, channels=8. Their sizes are embed_dims=(16"
        in str(error.value)
    )
    small = vig_jax.create_segmenter("vig_h_t", num_classes=3, gla_implementation="reference")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(small.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), dict(shapes))
    with pytest.raises(WeightsError, match=r"Their sizes are those of vig_h_t$"):
        fit_dense(
            WeightFile(mmseg.from_variables(zeros)),
            "vig_h_s",
            vig_jax.create_segmenter("vig_h_s", num_classes=3, gla_implementation="reference"),
        )
    with pytest.raises(WeightsError, match="are those of vig_t, not of vig_h_t"):
        fit_dense(WeightFile({}, model_name="vig_t"), "vig_h_t", small)
