"""Explanations of models whose answer is known by construction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vig_jax
from kernels_pallas import implementations
from tests.weights import dense_case
from vig_jax.cli.main import main
from vig_jax.errors import ConfigError
from vig_jax.explain import (
    block_gates,
    class_saliency,
    contribution_area,
    explain,
    memory_lengths,
    receptive_fields,
)
from vig_jax.layers.gated_linear_attention import GATE_NORMALIZER, GatedLinearAttention
from vig_jax.weights.load import save_safetensors

REFERENCE = {"gla_implementation": "reference"}  # the fastest to compile
PLAIN = {"img_size": 36, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
FOUR = {"embed_dims": (8, 8, 16, 16), "depths": (1,) * 4, "num_heads": (1, 1, 2, 2)}
SIDE, GRID = 36, 9  # pixels, tokens of the plain model

pytestmark = pytest.mark.usefixtures("compilation_cache")


def random_variables(model, images):
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (x.ndim == 1) + 0.2 * generator.standard_normal(x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )


def bias_of(log_decay):
    """Returns the bias that makes a log-decay, from -inf to 0."""
    with np.errstate(divide="ignore"):
        odds = np.expm1(-GATE_NORMALIZER * np.float64(log_decay))  # exp(-logit)
        return -np.log(odds).astype(np.float32)


def set_gates(variables, blocks, *, forward, backward, scan_logit):
    """Sets the gates of blocks to constants: nothing of them depends on the images."""
    for block in blocks:
        mixer = block["attn"]
        width = mixer["g_proj"]["bias"].size
        mixer["gk_proj_up"] = {
            "kernel": np.zeros_like(mixer["gk_proj_up"]["kernel"]),
            "bias": np.concatenate(
                [np.resize(bias_of(x), width // 2) for x in (forward, backward)]
            ).astype(np.float32),
        }
        mixer["g_proj"] = {
            "kernel": np.zeros_like(mixer["g_proj"]["kernel"]),
            "bias": np.repeat(np.float32(scan_logit), width // np.size(scan_logit)),
        }
    return variables


@pytest.fixture(scope="module")
def plain():
    """A plain model of random weights, and two images."""
    model = vig_jax.create_model("vig_t", num_classes=3, **PLAIN, **REFERENCE)
    images = np.random.default_rng(1).standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)
    return model, random_variables(model, images[:1]), images


def before(limit):
    """The tokens before each token of the plain model, up to a limit, as a map."""
    return np.minimum(np.arange(GRID**2), limit).reshape(GRID, GRID)


def test_memory_and_gates_of_known_weights(plain):
    model, variables, images = plain
    variables = jax.tree.map(np.copy, variables)
    blocks = [variables["params"][f"blocks_{i}"] for i in range(2)]
    set_gates(variables, blocks[:1], forward=[0.0], backward=[-1 / 4], scan_logit=[-np.inf])
    set_gates(
        variables, blocks[1:], forward=[-np.inf], backward=[0.0, -1.0], scan_logit=[np.inf, 0.0]
    )
    first, second = block_gates(model, variables, images).values()
    back = before(np.inf)[::-1, ::-1]  # the scan from the last token counts those behind
    for head in range(2):
        for row in range(2):
            np.testing.assert_array_equal(first.memory_fwd[row, head], before(np.inf))
            np.testing.assert_array_equal(first.memory_bwd[row, head], np.minimum(back, 4))
            np.testing.assert_array_equal(second.memory_fwd[row, head], 0)
            # Half of the channels remember everything, the others one token.
            expected = (back + np.minimum(back, 1)) / 2
            np.testing.assert_array_equal(second.memory_bwd[row, head], expected)
    np.testing.assert_array_equal(first.local_weight, 1)
    np.testing.assert_array_equal(second.local_weight[:, 0], 0)
    np.testing.assert_array_equal(second.local_weight[:, 1], 0.5)


def test_blocks_of_a_hierarchical_model():
    """Maps have the grid of their stage, on an image that is not square."""
    model = vig_jax.create_model("vig_h_t", num_classes=0, **FOUR, **REFERENCE)
    images = np.zeros((1, 64, 96, 3), np.float32)
    variables = random_variables(model, images)
    blocks = [variables["params"][f"stages_{i}"]["blocks_0"] for i in range(4)]
    set_gates(variables, blocks, forward=[-1 / 8], backward=[-1 / 2], scan_logit=[np.log(3)])
    found = block_gates(model, variables, images)
    assert list(found) == [f"stages_{i}.blocks_0" for i in range(4)]
    for gates, heads, stride in zip(found.values(), (1, 1, 2, 2), (4, 8, 16, 32), strict=True):
        shape = (1, heads, 64 // stride, 96 // stride)
        assert {x.shape for x in gates} == {shape}
        token = np.arange(shape[2] * shape[3])
        for i, limit in enumerate((8, 2)):
            expected = np.minimum(token[::-1] if i else token, limit).reshape(shape[2:])
            np.testing.assert_array_equal(gates[i][0], np.stack([expected] * heads))
        np.testing.assert_allclose(gates.local_weight, 0.25, rtol=1e-6)


def test_memory_of_decays_that_differ():
    """Compares with the definition: products of decays, token by token."""
    log_decay = -np.random.default_rng(0).exponential(0.2, (2, 12, 2, 3)).astype(np.float32)
    log_decay[0, 5] = -np.inf
    decays = np.exp(log_decay.astype(np.float64))
    for reverse in (False, True):
        scan = decays[:, ::-1] if reverse else decays
        expected = np.zeros(log_decay.shape)
        for token in range(12):
            for earlier in range(token):
                kept = np.prod(scan[:, earlier + 1 : token + 1], axis=1)
                expected[:, token] += kept >= np.exp(-1)
        expected = expected[:, ::-1] if reverse else expected
        found = memory_lengths(log_decay, reverse=reverse)
        np.testing.assert_allclose(found, expected.mean(axis=-1), rtol=1e-6)


def support(field):
    """Returns the first and the last row and column with a gradient; all between must have one."""
    rows, columns = np.nonzero(field.any(1))[0], np.nonzero(field.any(0))[0]
    assert (np.diff(rows) == 1).all()
    assert (np.diff(columns) == 1).all()
    return rows[0], rows[-1], columns[0], columns[-1]


@pytest.mark.parametrize("case", ["local", "forgetful", "remembering"])
def test_receptive_field_of_known_weights(plain, case):
    """Local branches and scans without memory see a window; scans with memory see everything."""
    model, variables, images = plain
    variables = jax.tree.map(np.copy, variables)
    blocks = [variables["params"][f"blocks_{i}"] for i in range(2)]
    decay = -np.inf if case == "forgetful" else 0.0
    gate = -np.inf if case == "local" else np.inf
    set_gates(variables, blocks, forward=[decay], backward=[decay], scan_logit=[gate])
    first, last = receptive_fields(model, variables, images, (0, -1))
    centre = GRID // 2
    for reach, field in ((1, first), (2, last)):
        # A token sees the pixels from 3 before its patch to 3 after the patch's first.
        window = 4 * (centre - reach) - 3, 4 * (centre + reach) + 3
        seen = (0, SIDE - 1) if case == "remembering" else window
        assert support(field) == (*seen, *seen)


def test_contribution_area():
    assert contribution_area(np.ones((9, 9))) == 49 / 81  # 5 x 5 of 81 would be less than half
    assert contribution_area(np.eye(9)[4][:, None] * np.eye(9)[4]) == 1 / 81
    assert contribution_area(np.eye(8)[0][:, None] * np.eye(8)[0]) == 1
    assert np.isnan(contribution_area(np.zeros((3, 3))))


class Linear(nn.Module):
    """Logits that are a linear function of the pixels, or a function of it."""

    nonlinear: bool = False

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(3)(images.reshape(len(images), -1))
        return jnp.tanh(x) * jnp.sum(x, axis=1, keepdims=True) if self.nonlinear else x


def test_saliency_of_a_linear_model():
    images = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    variables = jax.jit(Linear().init)(jax.random.key(0), images)
    found = class_saliency(Linear(), variables, images, [2, 0], steps=3)
    weights = np.asarray(variables["params"]["Dense_0"]["kernel"]).reshape(4, 6, 3, 3)
    expected = (images * np.stack([weights[..., 2], weights[..., 0]])).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_saliency_adds_up_to_the_difference_of_logits():
    images = np.random.default_rng(0).standard_normal((1, 4, 6, 3)).astype(np.float32)
    model = Linear(nonlinear=True)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    found = class_saliency(model, variables, images, [1], steps=200)
    difference = model.apply(variables, images) - model.apply(variables, np.zeros_like(images))
    np.testing.assert_allclose(found.sum(), difference[0, 1], rtol=1e-3)


def test_classification_does_not_pay_for_gates(plain, monkeypatch):
    """The programs are those of a model that cannot capture anything."""
    model, variables, images = plain

    def programs():
        return [
            jax.jit(lambda v, x, m=method: model.apply(v, x, method=m))
            .lower(variables, images)
            .as_text()
            for method in ("__call__", "features")
        ]

    def capture(*arguments):
        raise AssertionError("gates are computed")

    with_gates = programs()
    monkeypatch.setattr(GatedLinearAttention, "_capture", capture)
    assert programs() == with_gates
    with pytest.raises(AssertionError, match="gates are computed"):
        block_gates(model, variables, images)


class WithoutGates(nn.Module):
    """A backbone of another kind."""

    num_classes: int = 0

    def features(self, images, out_indices=None):
        return (images,)

    __call__ = features


@pytest.mark.usefixtures("unchecked")
def test_a_model_without_gates():
    with pytest.raises(ConfigError, match="WithoutGates stores no gates: its mixers must be"):
        block_gates(WithoutGates(), {}, np.zeros((1, 4, 4, 3), np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, plain):
    model, variables, _ = plain
    path = tmp_path_factory.mktemp("explain") / "pets"
    vig_jax.save_pretrained(path, model, variables, class_names=("cat", "dog", "owl"))
    return path


def photos(directory):
    for i, name in enumerate(("a.png", "b.jpg")):
        pixels = np.random.default_rng(i).integers(0, 256, (50, 40, 3), np.uint8)
        Image.fromarray(pixels).save(directory / name)
    return [str(directory / "a.png"), str(directory / "b.jpg")]


def test_the_command(folder, tmp_path, capsys):
    options = ["--class", "dog", "--steps", "2", "--output", str(tmp_path / "out")]
    with implementations("reference"):
        assert main(["explain", str(folder), *photos(tmp_path), *options]) == 0
    assert "arrays: " in capsys.readouterr().out
    for name in ("a", "b"):
        with Image.open(tmp_path / "out" / f"{name}_explanation.png") as figure:
            assert figure.width == 1800
    arrays = np.load(tmp_path / "out" / "explanations.npz")
    shapes = {name: arrays[name].shape for name in arrays.files}
    gates = {
        f"{name}.blocks_{i}": (2, 2, GRID, GRID)
        for name in ("memory_fwd", "memory_bwd", "local_weight")
        for i in range(2)
    }
    fields = {f"receptive_field.blocks_{i}": (SIDE, SIDE) for i in range(2)}
    images = {"images": (2, SIDE, SIDE, 3), "saliency": (2, SIDE, SIDE), "files": (2,)}
    assert shapes == gates | fields | images | {"classes": (2,), "probabilities": (2,)}
    assert arrays["classes"].tolist() == [1, 1]
    loaded = vig_jax.from_pretrained(folder)
    run = vig_jax.predictor(loaded.model, loaded.variables, 2, SIDE)
    expected = nn.softmax(run(arrays["images"]))[:, 1]
    np.testing.assert_allclose(arrays["probabilities"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "3"], "class 3 is out of range: the model has 3 classes, 0 to 2"),
        (["--class", "-1"], "class -1 is out of range"),
        (["--class", "dogg"], "unknown class 'dogg'; did you mean 'dog'?"),
        (["text.png"], "text.png: not a JPEG, PNG,"),
        (["nothing.png"], "no image file or folder at nothing.png"),
    ],
)
def test_one_line_for_bad_input(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    photo, _ = photos(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    assert main(["explain", str(folder), photo, *options]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]
    assert len(printed) <= 2  # the first names the model
    assert not (tmp_path / "explanations").exists()


def test_the_backbone_of_a_segmenter(tmp_path):
    _, variables = dense_case.segmenter("vig_t")
    file = tmp_path / "x.safetensors"
    mutable = {key: tree for key, tree in variables.items() if key != "params"}
    save_safetensors(variables["params"], file, model_name="vig_t", averaged=True, mutable=mutable)
    loaded = vig_jax.from_pretrained(file, settings=dense_case.PLAIN)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with implementations("reference"):
        found = explain(loaded, images)
    assert found.saliency is None
    assert list(found.receptive_fields) == ["blocks_0", "blocks_1"]
    assert "saliency" not in found.arrays()
    with pytest.raises(ConfigError, match="no classification head; leave the class out"):
        explain(loaded, images, class_index=0)
