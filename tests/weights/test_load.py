"""`load_weights`: upstream's own files to golden logits, and what differs from a file."""

import functools
import json
import logging
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vig_jax
from tests import golden
from tests.weights import torch_writer
from vig_jax.errors import WeightsError
from vig_jax.weights import upstream
from vig_jax.weights.load import read_weight_file, save_safetensors

FOLDER = Path(__file__).parent / "golden"
MODELS = Path(__file__).parents[1] / "models" / "golden"
FILES = sorted(FOLDER.glob("*.pth")) + sorted(FOLDER.glob("*.safetensors"))
AVERAGED = golden.SEED + 1  # the seed of `model_ema` in these files
# Flags of the golden models come with the variant; the plain one halves twice in evaluation.
VARIANTS = {"plain_fmt": ("vig_t", {"merge_scale": 0.25}), "hier_fmt": ("vig_h_t", {})}


@functools.cache
def described(name):
    """The golden model's description and sizes, its variant, and the flags of its evaluation."""
    case = golden.load(MODELS, name)[0]
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in case["model"].items()}
    return case, sizes, *VARIANTS[name]


@functools.cache
def evaluation(name):
    """A compiled model, and its images."""
    case, sizes, variant, flags = described(name)
    model = vig_jax.create_model(variant, **sizes, **flags)
    return jax.jit(model.apply), golden.images(name, "native", case["images"]["native"])


def model_of(file):
    return "_".join(file.stem.split("_")[:2])


def load(file, name=None, **changes):
    _, sizes, variant, _ = described(name or model_of(file))
    return vig_jax.load_weights(file, variant, **(sizes | changes))


def arrays(name, seed=golden.SEED):
    """Upstream's state dict."""
    return golden.weights(described(name)[0]["keys"], {}, seed)


def flat(variables):
    return upstream.from_params(variables["params"])


def logits(variables, name):
    apply, images = evaluation(name)
    return apply(variables, images)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("ema", [None, True, False])
def test_upstream_files(file, ema):
    name = model_of(file)
    found = flat(load(file, ema=ema))
    only_averaged, only_raw = "best_acc_ema" in file.name, file.suffix == ".safetensors"
    averaged = only_averaged or (ema is not False and not only_raw)
    expected = arrays(name, AVERAGED if averaged else golden.SEED)
    assert golden.digest(found) == golden.digest(expected)
    if averaged:
        description = json.loads((FOLDER / f"{name}.json").read_text())
        assert golden.digest(found) == description["ema_weights_sha256"]


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_logits_of_a_training_checkpoint(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    variables = load(FOLDER / f"{name}_ckpt.pth")
    actual = logits(variables, name)
    expected = np.array(expected["logits64_eval_native_of_model_ema"])
    assert golden.relative_error(actual, expected) < 1e-5
    raw = logits(load(FOLDER / f"{name}_ckpt.pth", ema=False), name)
    expected = golden.load(MODELS, name)[1]["logits64.eval.native"]
    assert golden.relative_error(raw, expected) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_bare_state_dict(name, tmp_path):
    file = tmp_path / "weights.pt"
    torch_writer.save(torch_writer.state_dict(arrays(name)), file)
    assert golden.digest(flat(load(file, name))) == golden.digest(arrays(name))


def test_old_names_and_convolutional_matrices(tmp_path):
    # Upstream's vig_h.py takes these names, and 1x1 convolutions in four dimensions.
    old = {}
    for key, value in arrays("hier_fmt").items():
        new = key.replace("patch_embed.0.", "patch_embed.proj.")
        new = new.replace("patch_embed.2.", "patch_embed.norm.")
        new = new.replace(".norm.", ".ln_1.").replace(".op.", ".self_attention.")
        new = new.replace("patch_embed.ln_1.", "patch_embed.norm.")
        new = new.replace("classifier.ln_1.", "norm.").replace("classifier.head.", "head.")
        linear = value.ndim == 2 and not new.startswith("head")
        old[new] = value[:, :, None, None] if linear else value
    assert len(old.keys() - arrays("hier_fmt").keys()) > 20
    file = tmp_path / "old.pth"
    torch_writer.save({"model": torch_writer.state_dict(old)}, file)
    assert golden.digest(flat(load(file, "hier_fmt"))) == golden.digest(arrays("hier_fmt"))
    old["classifier.norm.weight"] = old["norm.weight"]
    torch_writer.save({"model": torch_writer.state_dict(old)}, file)
    with pytest.raises(WeightsError, match=r"both mean classifier\.norm\.weight"):
        load(file, "hier_fmt")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_dtypes_are_kept(tmp_path, dtype, suffix):
    expected = {k: v.astype(jnp.dtype(dtype)) for k, v in arrays("plain_fmt").items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch_writer.save(torch_writer.state_dict(expected), file)
    else:
        safetensors.numpy.save_file(expected, file)
    found = flat(load(file, "plain_fmt"))
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, strict=True)


def test_memory_order_does_not_matter(tmp_path):
    # Transposed in memory, as `tensor.t()` leaves it, and all in one storage.
    expected = arrays("plain_fmt")
    storage = torch_writer.Storage(np.concatenate([v.ravel() for v in expected.values()]))
    saved, offset = {}, 0
    for key, value in expected.items():
        saved[key] = torch_writer.tensor(np.asfortranarray(value))
        if len(saved) % 2:
            strides = tuple(s // value.itemsize for s in value.strides)
            saved[key] = torch_writer.Tensor(storage, value.shape, strides, offset)
        offset += value.size
    file = tmp_path / "weights.pth"
    torch_writer.save({"model": saved}, file)
    assert golden.digest(flat(load(file, "plain_fmt"))) == golden.digest(expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_new_head(name, caplog):
    file = FOLDER / f"{name}_ckpt.pth"
    caplog.set_level(logging.WARNING)
    variables, again, same = load(file, num_classes=200), load(file, num_classes=200), load(file)
    kernel = variables["params"]["head"]["kernel"]
    assert kernel.shape == (32, 200)
    assert kernel.std() == pytest.approx(0.02, rel=0.05)
    assert not variables["params"]["head"]["bias"].any()
    np.testing.assert_array_equal(kernel, again["params"]["head"]["kernel"])
    message = f"{file}: a new head for 200 classes, as the file's is for 10: it must be trained"
    assert [record.getMessage() for record in caplog.records] == [message] * 2
    del variables["params"]["head"], same["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, variables, same)


def test_number_of_classes_is_that_of_the_file():
    case = described("plain_fmt")[0]["model"]
    sizes = {key: value for key, value in case.items() if key != "num_classes"}
    variables = vig_jax.load_weights(FOLDER / "plain_fmt_ckpt.pth", "vig_t", **sizes)
    assert variables["params"]["head"]["bias"].shape == (10,)


def test_other_image_size_resizes_the_position_embedding(caplog):
    caplog.set_level(logging.WARNING)
    variables = load(FOLDER / "plain_fmt_ckpt.pth", img_size=48)
    assert variables["params"]["pos_embed"].shape == (1, 9, 32)
    assert "position embedding resized from 2x2 to 3x3" in caplog.text
    # The model made for 32 pixels resizes it in every call, to the same.
    _, sizes, variant, _ = described("plain_fmt")
    images = golden.images("plain_fmt", "large", (1, 3, 48, 48))
    resized = vig_jax.create_model(variant, **(sizes | {"img_size": 48}))
    original = vig_jax.create_model(variant, **sizes)
    expected = jax.jit(original.apply)(load(FOLDER / "plain_fmt_ckpt.pth"), images)
    assert golden.relative_error(jax.jit(resized.apply)(variables, images), expected) < 1e-5


def test_missing_kinds_are_reported(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    file = FOLDER / "plain_fmt_best_acc_ema_ckpt.pth"
    load(file, ema=True)
    assert "has no 'model_ema': these are the weights under 'model'" in caplog.text
    only = tmp_path / "only.pth"
    torch_writer.save({"model_ema": torch_writer.state_dict(arrays("plain_fmt"))}, only)
    load(only, "plain_fmt")
    with pytest.raises(WeightsError, match="only EMA weights"):
        load(only, "plain_fmt", ema=False)


def test_no_head(caplog):
    caplog.set_level(logging.WARNING)
    file = FOLDER / "plain_fmt_ckpt.pth"
    whole, body = load(file)["params"], load(file, num_classes=0)["params"]
    assert "the head for 10 classes is not used" in caplog.text
    chex.assert_trees_all_equal(body, {k: v for k, v in whole.items() if k != "head"})


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_without_a_head_get_a_new_one(name, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    whole = arrays(name)
    file = tmp_path / "headless.safetensors"
    body = {key: value for key, value in whole.items() if ".head." not in f".{key}"}
    assert len(body) == len(whole) - 2
    safetensors.numpy.save_file(body, file)
    params = load(file, name, num_classes=7)["params"]
    assert params["head"]["kernel"].shape == (32, 7)
    assert params["head"]["kernel"].std() == pytest.approx(0.02, rel=0.2)
    assert not params["head"]["bias"].any()
    assert "a new head for 7 classes, as the file has none: it must be trained" in caplog.text
    del params["head"]
    assert golden.digest(flat({"params": params})) == golden.digest(body)
    chex.assert_trees_all_equal(load(file, name, num_classes=None)["params"], params)


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_section_counts_as_absent(empty, tmp_path):
    file = tmp_path / "weights.pth"
    weights = torch_writer.state_dict(arrays("plain_fmt"))
    torch_writer.save({"model": weights, "model_ema": empty, "epoch": 0}, file)
    found = read_weight_file(file)
    assert (found.section, found.others) == ("model", ("epoch",))
    torch_writer.save({"model": empty, "model_ema": weights}, file)
    with pytest.raises(WeightsError, match="only EMA weights"):
        read_weight_file(file, ema=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_number_of_arrays_is_bounded(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("vig_jax.weights.load.MAX_ARRAYS", 3)
    file = tmp_path / f"weights{suffix}"
    saved = {str(number): np.zeros(1, np.float32) for number in range(4)}
    if suffix == ".pth":
        torch_writer.save(torch_writer.state_dict(saved), file)
    else:
        safetensors.numpy.save_file(saved, file)
    with pytest.raises(WeightsError, match="has 4 arrays; at most 3 are read"):
        read_weight_file(file)


def test_names_are_compared_in_linear_time():
    names = [f"blocks.{i}.strange" for i in range(5000)]
    model = vig_jax.create_model("vig_t", depth=1)
    with pytest.raises(WeightsError, match=r"unexpected \(5000\)"):
        upstream.to_params(dict.fromkeys(names, np.zeros(1)), model)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("plain_fmt", r"embed_dim=32, depth=\d+, num_heads=\d+"),
        ("hier_fmt", r"embed_dims=\(.*\), depths=\(.*\), num_heads=\(.*\)"),
    ],
)
def test_sizes_are_suggested(name, sizes):
    variant = VARIANTS[name][0]
    with pytest.raises(WeightsError, match=rf"Their sizes are {sizes}: .*--set") as raised:
        vig_jax.load_weights(FOLDER / f"{name}_ckpt.pth", variant)
    # The suggestion is right.
    text = str(raised.value).partition("Their sizes are ")[2].partition(": pass")[0]
    settings = {key: value for key, value in described(name)[1].items() if f"{key}=" in text}
    assert text == ", ".join(f"{k}={settings[k]}" for k in re.findall(r"(\w+)=", text))


def test_wrong_models_and_heads(tmp_path):
    file = FOLDER / "plain_fmt_ckpt.pth"
    with pytest.raises(WeightsError, match=r"plain_fmt_ckpt\.pth: the weights do not fit"):
        vig_jax.load_weights(file, "vig_s", depth=1)
    with pytest.raises(WeightsError, match=r"unexpected \(26\): .*pos_embed"):
        vig_jax.load_weights(file, "vig_h_t", depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"unknown model 'vig_z'"):
        vig_jax.load_weights(file, "vig_z")
    broken = tmp_path / "broken.pth"
    for change, message in (
        ({"head.weight": np.zeros((10, 7), np.float32)}, r"head\.weight: file \(7, 10\)"),
        ({"head.bias": np.zeros(7, np.float32)}, r"head\.bias: file \(7,\)"),
        ({"pos_embed": np.zeros((1, 5, 32), np.float32)}, r"pos_embed: file \(1, 5, 32\)"),
        ({"norm.weight": np.zeros(32, np.int64)}, r"norm\.weight is int64"),
        ({"extra": np.zeros(3, np.float32)}, r"unexpected \(1\): extra"),
        ({"head.bias": None}, r"missing \(1\): head\.bias"),
    ):
        changed = {k: v for k, v in (arrays("plain_fmt") | change).items() if v is not None}
        torch_writer.save({"model": torch_writer.state_dict(changed)}, broken)
        with pytest.raises(WeightsError, match=message):
            load(broken, "plain_fmt")


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_the_right_model_is_suggested(tmp_path, name):
    keys = golden.load(MODELS, name)[0]["keys"]
    zero = np.zeros((), np.float16)
    file = tmp_path / "weights.pth"
    saved = {
        key: torch_writer.Tensor(torch_writer.Storage(zero.reshape(1)), shape, (0,) * len(shape))
        for key, shape, *_ in keys
    }
    torch_writer.save(saved, file)
    with pytest.raises(WeightsError, match=f"Their sizes are those of {name}$"):
        vig_jax.load_weights(file, "vig_b", depth=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trips_to_the_byte(name, tmp_path):
    """upstream .pth -> ours -> upstream .safetensors -> ours -> upstream .safetensors."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    _, _, variant, _ = described(name)
    variables = load(FOLDER / f"{name}_ckpt.pth", ema=False)
    save_safetensors(variables["params"], first, model_name=variant, averaged=False)
    save_safetensors(load(first, name)["params"], second, model_name=variant, averaged=False)
    assert first.read_bytes() == second.read_bytes()
    theirs = safetensors.numpy.load_file(FOLDER / f"{name}.safetensors")
    ours = safetensors.numpy.load_file(first)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, strict=True)


def test_the_checksum_of_our_safetensors_files_is_verified(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_safetensors(
        load(FOLDER / "plain_fmt_ckpt.pth")["params"], file, model_name="vig_t", averaged=True
    )
    assert read_weight_file(file).averaged is True
    with pytest.raises(WeightsError, match="only EMA weights"):
        read_weight_file(file, ema=False)
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="its checksum differs"):
        read_weight_file(file)


def test_corrupted_bytes_of_our_safetensors_files(tmp_path):
    original = tmp_path / "weights.safetensors"
    params = load(FOLDER / "plain_fmt_ckpt.pth")["params"]
    save_safetensors(params, original, model_name="vig_t", averaged=True)
    expected, data = read_weight_file(original).state_dict, original.read_bytes()
    generator, errors = np.random.default_rng(0), 0
    for _ in range(100):
        changed = bytearray(data)
        changed[generator.integers(generator.choice((4000, len(data))))] ^= 1 << 3
        original.write_bytes(changed)
        try:
            found = read_weight_file(original).state_dict
        except WeightsError:
            errors += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert errors > 90
