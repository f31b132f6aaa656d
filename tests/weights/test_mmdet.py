"""Detectors under mmdetection's names: both ways to the bit, golden values, other heads, files."""

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import vig_jax
from tests import golden_det
from tests.weights import torch_writer
from tests.weights.dense_case import DETECTORS, FOUR, PLAIN, detector
from vig_jax.config import RunConfig, parse, recipes
from vig_jax.errors import WeightsError
from vig_jax.weights import mmdet, upstream
from vig_jax.weights.fit import WeightFile, fit
from vig_jax.weights.fit_dense import fit_dense
from vig_jax.weights.initial import dense_variables
from vig_jax.weights.table import to_ours


@pytest.mark.parametrize("name", DETECTORS)
def test_round_trip_to_the_bit(name):
    model, variables = detector(name)
    state_dict = mmdet.NAMES.from_variables(variables)
    chex.assert_trees_all_equal(mmdet.NAMES.to_variables(state_dict, model), variables)
    parts = {k.partition(".")[0] for k in state_dict}
    assert parts == {"backbone", "neck", "rpn_head", "roi_head"}
    assert state_dict["roi_head.bbox_head.shared_fcs.0.weight"].shape == (4, 8 * 49)
    assert state_dict["rpn_head.rpn_reg.weight"].shape == (12, 8, 1, 1)


def test_names_and_layouts_are_those_of_the_golden_values():
    """The heads that reproduce mmdetection's results read the same arrays through the table."""
    golden = golden_det.load("full")
    theirs = golden.below("w.")
    expected = {f"params/roi_head/{k}": v for k, v in flat(golden_det.tree(theirs, np.float32))}
    given = {f"roi_head.{key}": value.astype(np.float32) for key, value in theirs.items()}
    shapes = {path: x.shape for path, x in expected.items()}
    chex.assert_trees_all_equal(
        to_ours(mmdet.NAMES.tables.hierarchical, given, shapes, cure=""), expected
    )


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def test_files(tmp_path, caplog):
    model, variables = detector("vig_h_t")
    file = tmp_path / "detector.pth"
    state_dict = mmdet.NAMES.from_variables(variables)
    torch_writer.save({"state_dict": torch_writer.state_dict(state_dict), "meta": {}}, file)
    # The number of classes is that of the file.
    sizes = {k: v for k, v in DETECTORS["vig_h_t"].items() if k != "num_classes"}
    chex.assert_trees_all_equal(vig_jax.load_weights(file, "vig_h_t", **sizes), variables)
    found = vig_jax.load_weights(file, "vig_h_t", num_classes=5, **sizes)["params"]
    assert "for 5 classes, as the file's are for 3: they must be trained" in caplog.text
    assert found["roi_head"]["bbox_head"]["fc_cls"]["kernel"].shape == (4, 6)
    chex.assert_trees_all_equal(found["neck"], variables["params"]["neck"])
    with pytest.raises(WeightsError, match=r"box_channels.*shared_fcs.*file's heads have box_ch"):
        fit_dense(WeightFile(state_dict), "vig_h_t", model.clone(box_channels=8))
    with pytest.raises(WeightsError, match="those of a detector"):
        fit(state_dict, "vig_h_t", num_classes=3)


def test_classes_are_matched_by_name():
    model, variables = detector("vig_h_t")
    file = WeightFile(
        mmdet.NAMES.from_variables(variables), metadata={"instance_names": ("cat", "dog", "cow")}
    )
    fitted, notes = fit_dense(file, "vig_h_t", model, class_names=("cow", "cat", "dog"))
    assert "matched to the data set's classes by name" in notes[0]
    ours, theirs = fitted["params"]["roi_head"], variables["params"]["roi_head"]
    order = np.array([2, 0, 1])
    kernel = theirs["bbox_head"]["fc_cls"]["kernel"]
    np.testing.assert_array_equal(ours["bbox_head"]["fc_cls"]["kernel"], kernel[:, [*order, 3]])
    deltas = theirs["bbox_head"]["fc_reg"]["bias"].reshape(3, 4)[order].ravel()
    np.testing.assert_array_equal(ours["bbox_head"]["fc_reg"]["bias"], deltas)
    masks = theirs["mask_head"]["conv_logits"]["kernel"][:, order]
    np.testing.assert_array_equal(ours["mask_head"]["conv_logits"]["kernel"], masks)
    boxes, notes = fit_dense(
        file, "vig_h_t", model.clone(masks=False), class_names=("cat", "dog", "hen")
    )
    assert "the mask head is not used" in notes
    assert "as the data set has other classes" in notes[1]
    assert boxes["params"]["roi_head"]["bbox_head"].keys() == {"shared_fcs_0", "shared_fcs_1"}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_run_starts_from_a_classifier(tmp_path, name):
    model, variables = detector(name)
    sizes = {k: v for k, v in DETECTORS[name].items() if k in PLAIN | FOUR}
    classifier = vig_jax.create_model(name, 7, **sizes)
    shapes = jax.eval_shape(
        classifier.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    )
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes["params"])
    file = tmp_path / "classifier.safetensors"
    safetensors.numpy.save_file(upstream.from_params(params), file)
    values = recipes.coco(name)
    values.model.update(sizes)
    values.init_weights = str(file)
    config: RunConfig = parse(values)
    found, line = dense_variables(config, model, {"instance_names": ("a", "b", "c")})
    assert found["params"].keys() == {"backbone"}
    chex.assert_trees_all_equal_shapes(found["params"]["backbone"], variables["params"]["backbone"])
    assert "neck and heads are new: they must be trained" in line
