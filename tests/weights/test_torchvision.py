"""Detectors under torchvision's names: its outputs, both ways to the bit, what is refused."""

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import vig_jax
from tests.golden import noise
from tests.golden_seg import last, relative_error
from tests.weights import torch_writer
from tests.weights.dense_case import DETECTORS, detector
from vig_jax.errors import WeightsError
from vig_jax.heads.fpn import FPN
from vig_jax.heads.roi import RoIHead
from vig_jax.heads.rpn import RPNHead
from vig_jax.ops.roi_align import RoIAlign
from vig_jax.weights.fit import WeightFile
from vig_jax.weights.fit_dense import fit_dense
from vig_jax.weights.torchvision import NAMES

GOLDEN = Path(__file__).parent / "golden_torchvision"
SHAPES = json.loads((GOLDEN / "mask_rcnn.json").read_text())["shapes"]
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-6}
CLASSES = ("cat", "dog", "cow")


def heads_alone():
    """The golden model's state dict; it has no backbone."""
    values = {}
    for name, shape in SHAPES.items():
        inputs = int(np.prod(shape[1:])) or 1
        values[name] = noise(name, shape).astype(np.float32) / np.float32(np.sqrt(inputs))
    return values


def by_anchor(x, numbers):
    """Their map [1, anchors * numbers, h, w] as [1, positions * anchors, numbers]."""
    return last(x).reshape(1, -1, numbers)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_outputs_are_those_of_torchvision(dtype):
    model, _ = detector("vig_h_t")
    variables, notes = fit_dense(WeightFile(heads_alone()), "vig_h_t", model)
    assert notes == ("the file has heads alone: the backbone is new and must be trained",)
    params = variables["params"]
    assert params.keys() == {"neck", "rpn_head", "roi_head"}
    expected = dict(np.load(GOLDEN / "mask_rcnn.npz"))
    align = {"box_align": RoIAlign((7, 7), aligned=False)}
    align |= {"mask_align": RoIAlign((14, 14), aligned=False)}
    head = RoIHead(3, 4, 8, **align, level_rule="tv")

    @jax.jit
    def outputs(params, maps, boxes):
        def run(module, name, *args, method=None):
            return module.apply({"params": params[name]}, *args, method=method)

        pyramid = run(FPN(8), "neck", maps)
        anchors = run(RPNHead(3, 8), "rpn_head", pyramid)
        regions = run(head, "roi_head", pyramid, boxes, method="boxes")
        return pyramid, anchors, regions, run(head, "roi_head", pyramid, boxes, method="masks")

    with jax.enable_x64(dtype is np.float64):
        stages = [noise(f"stage/{i}", (1, 16, 16 >> i, 16 >> i)) for i in range(4)]
        maps = [last(x.astype(np.float32)).astype(dtype) for x in stages]
        boxes = expected["boxes"][None].astype(dtype)
        widened = jax.tree.map(lambda x: x.astype(dtype), params)
        pyramid, anchors, (logits, deltas), masks = outputs(widened, maps, boxes)
    found = {}
    for i, (level, (objectness, moves)) in enumerate(zip(pyramid, anchors, strict=True)):
        found |= {f"pyramid_{i}": level, f"anchor_logits_{i}": objectness[..., None]}
        found[f"anchor_deltas_{i}"] = moves
        expected[f"pyramid_{i}"] = last(expected[f"pyramid_{i}"])
        for name, numbers in (("logits", 1), ("deltas", 4)):
            key = f"anchor_{name}_{i}"
            expected[key] = by_anchor(expected[key], numbers)
    found |= {"box_logits": logits[0], "box_deltas": deltas[0], "mask_logits": masks[0, :2]}
    expected["box_logits"] = np.roll(expected["box_logits"], -1, axis=1)  # the background is last
    expected["box_deltas"] = expected["box_deltas"].reshape(3, 4, 4)[:, 1:]
    expected["mask_logits"] = last(expected["mask_logits"])[..., 1:]
    assert found.keys() == expected.keys() - {"boxes"}
    for name, values in found.items():
        assert relative_error(values, expected[name]) < TOLERANCE[dtype], name


def test_round_trip_to_the_bit():
    model, variables = detector("vig_h_t")
    state_dict = NAMES.from_variables(variables)
    chex.assert_trees_all_equal(NAMES.to_variables(state_dict, model), variables)
    rest = {k: list(v.shape) for k, v in state_dict.items() if not k.startswith(NAMES.backbone)}
    assert rest == SHAPES
    assert not state_dict["roi_heads.box_predictor.bbox_pred.weight"][:4].any()


def test_files_with_a_vig_backbone_and_old_names(tmp_path):
    _, variables = detector("vig_h_t")
    state_dict = NAMES.from_variables(variables)
    old = {}
    for name, value in state_dict.items():
        for i in range(4):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
        old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    assert len(old.keys() - state_dict.keys()) == 2 * (8 + 4 + 1)
    sizes = {k: v for k, v in DETECTORS["vig_h_t"].items() if k != "num_classes"}
    for number, names in enumerate((state_dict, old)):
        file = tmp_path / f"{number}.pth"
        torch_writer.save(torch_writer.state_dict(names), file)
        chex.assert_trees_all_equal(vig_jax.load_weights(file, "vig_h_t", **sizes), variables)
    both = old | {"rpn.head.conv.0.0.bias": state_dict["rpn.head.conv.0.0.bias"]}
    with pytest.raises(WeightsError, match=r"unexpected \(1\): rpn\.head\.conv\.0\.0\.bias"):
        fit_dense(WeightFile(both), "vig_h_t", detector("vig_h_t")[0])


def test_classes_are_matched_by_name():
    model, variables = detector("vig_h_t")
    file = WeightFile(NAMES.from_variables(variables), metadata={"instance_names": CLASSES})
    fitted, notes = fit_dense(file, "vig_h_t", model, class_names=("cow", "cat", "dog"))
    assert "matched to the data set's classes by name" in notes[0]
    ours, theirs = fitted["params"]["roi_head"], variables["params"]["roi_head"]
    order = np.array([2, 0, 1])
    box, given = ours["bbox_head"], theirs["bbox_head"]
    np.testing.assert_array_equal(box["fc_cls"]["bias"], given["fc_cls"]["bias"][[*order, 3]])
    deltas = given["fc_reg"]["kernel"].reshape(4, 3, 4)[:, order].reshape(4, 12)
    np.testing.assert_array_equal(box["fc_reg"]["kernel"], deltas)
    masks = theirs["mask_head"]["conv_logits"]["kernel"][:, order]
    np.testing.assert_array_equal(ours["mask_head"]["conv_logits"]["kernel"], masks)
    boxes, notes = fit_dense(file, "vig_h_t", model.clone(num_classes=2, masks=False))
    assert notes[0] == "the mask head is not used"
    assert "new last layers of the heads for 2 classes, as the file's are for 3" in notes[1]
    assert boxes["params"]["roi_head"]["bbox_head"].keys() == {"shared_fcs_0", "shared_fcs_1"}


def test_what_does_not_fit_is_named():
    model, _ = detector("vig_h_t")
    heads = heads_alone()
    resnet = heads | {"backbone.body.layer1.0.conv1.weight": np.ones((8, 8, 1, 1), np.float32)}
    with pytest.raises(WeightsError, match=r"another backbone \(backbone\.body\.layer1\.0\.conv1"):
        fit_dense(WeightFile(resnet), "vig_h_t", model)
    with pytest.raises(WeightsError, match=r"torchvision's names .* take a hierarchical model"):
        fit_dense(WeightFile(heads), "vig_t", detector("vig_t")[0])
    with pytest.raises(WeightsError, match=r"fc6\.weight: file .*file's heads have box_channels=4"):
        fit_dense(WeightFile(heads), "vig_h_t", model.clone(box_channels=8))
    # The heads of torchvision's second version have norms, and a second convolution of the RPN.
    second = {"rpn.head.conv.1.0.weight": (8, 8, 3, 3), "roi_heads.mask_head.0.1.weight": (8,)}
    second = heads | {name: np.ones(shape, np.float32) for name, shape in second.items()}
    del second["roi_heads.box_head.fc7.bias"]
    with pytest.raises(WeightsError, match="do not fit the model") as error:
        fit_dense(WeightFile(second), "vig_h_t", model)
    assert "missing (1): roi_heads.box_head.fc7.bias" in str(error.value)
    assert "unexpected (2): rpn.head.conv.1.0.weight, roi_heads.mask_head.0.1" in str(error.value)
