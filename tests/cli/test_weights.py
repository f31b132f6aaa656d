"""Upstream's weight files through the commands: the same answers by every way."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vig_jax
from tests.data.loading import eval_image
from vig_jax.cli.main import main
from vig_jax.data.datasets.imagenet import class_ids, class_names
from vig_jax.inference.loaded_model import load_for_inference, restore_weights
from vig_jax.weights.load import save_safetensors
from vig_jax.weights.published import published_config

GOLDEN = Path(__file__).parents[1] / "weights" / "golden"
# The golden files' models: variant, sizes, and the flags of upstream's evaluation.
PLAIN = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1}
FOUR = {"embed_dims": (32,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}
MODELS = {
    "plain_fmt": ("vig_t", PLAIN, {"merge_scale": 0.25}),
    "hier_fmt": ("vig_h_t", FOUR, {}),
}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

pytestmark = pytest.mark.usefixtures("compilation_cache")


def options(name):
    """The options that describe a golden model."""
    variant, sizes, _ = MODELS[name]
    pairs = [f"{key}={value}" for key, value in sizes.items()]
    return ["--model", variant, *(word for pair in pairs for word in ("--set", pair))]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A data set of ten classes with two images each."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for label in range(10):
        folder = root / "val" / f"c{label}"
        folder.mkdir(parents=True)
        for i in range(2):
            coarse = generator.integers(0, 256, (5, 6, 3), np.uint8)
            size = (int(generator.integers(30, 90)), int(generator.integers(30, 90)))
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return root


def preprocessed(file, side):
    """By Pillow's own calls, as torchvision's Resize and CenterCrop make them."""
    image = Image.open(file).convert("RGB")
    short = int(side / 0.875)
    width, height = image.size
    if width < height:
        image = image.resize((short, int(short * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(short * width / height), short), Image.Resampling.BICUBIC)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def test_pixels_are_those_of_pillow_to_the_bit(image_folder):
    data = published_config("vig_s").data
    assert (data.image_size, data.crop_pct, data.mean, data.std) == (224, 0.875, (*MEAN,), (*STD,))
    for file in sorted(image_folder.rglob("*.png")):
        pixels = eval_image(Image.open(file).convert("RGB"), data)
        np.testing.assert_array_equal(pixels, preprocessed(file, 224), strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_gives_the_same_answers(name, image_folder, tmp_path, capsys):
    variant, sizes, flags = MODELS[name]
    file = GOLDEN / f"{name}_ckpt.pth"
    variables = vig_jax.load_weights(file, variant, **sizes)
    model = vig_jax.create_model(variant, num_classes=10, **sizes, **flags)
    files = sorted(image_folder.rglob("*.png"))
    images = np.stack([preprocessed(path, 32) for path in files])
    normalised = ((images / 255 - MEAN) / STD).astype(np.float32)
    logits = np.asarray(jax.jit(model.apply)(variables, normalised))
    expected = np.asarray(jax.nn.softmax(logits))

    turned, folder = tmp_path / "turned.safetensors", tmp_path / "checkpoint"
    assert main(["convert", str(file), str(turned), *options(name)]) == 0
    assert main(["convert", str(file), str(folder), *options(name)]) == 0
    report = capsys.readouterr().out
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    assert report.count(f"sha256      {description['ema_weights_sha256']}") == 2
    assert report.count(f"sha256      {description['model_weights_sha256']}") == 1

    side = ["--image-size", "32"]
    ways = [["--weights", str(file), *options(name), *side]]
    if name == "plain_fmt":  # whose checkpoint keeps the size that the model is made for
        ways += [["--weights", str(turned), *options(name), *side], [str(folder)]]
    labels = np.repeat(np.arange(10), 2)
    loss = -np.log(expected[np.arange(20), labels]).mean()
    for way in ways:
        answers = tmp_path / "answers.json"
        predict = [*way, str(image_folder), "--top", "10", "--batch-size", "20"]
        assert main(["predict", *predict, "--json", str(answers)]) == 0
        for row, answer in zip(expected, json.loads(answers.read_text()), strict=True):
            found = {top["class"]: top["probability"] for top in answer["top"]}
            assert [found[f"class {label}"] for label in range(10)] == pytest.approx(row, abs=1e-5)
        if name == "hier_fmt":
            continue
        numbers = tmp_path / "numbers.json"
        evaluate = [*way, "--data-path", str(image_folder), "--workers", "0", "--batch-size", "20"]
        assert main(["evaluate", *evaluate, "--json", str(numbers)]) == 0
        assert json.loads(numbers.read_text())["loss"] == pytest.approx(loss, rel=1e-5)


def test_images_that_are_not_square(image_folder, tmp_path):
    variant, sizes, flags = MODELS["plain_fmt"]
    file = GOLDEN / "plain_fmt_ckpt.pth"
    data = dataclasses.replace(published_config("vig_t").data, eval_size=(48, 32))
    files = sorted(image_folder.rglob("*.png"))
    images = np.stack([eval_image(Image.open(path).convert("RGB"), data) for path in files])
    assert images.shape == (20, 48, 32, 3)
    model = vig_jax.create_model(variant, num_classes=10, **sizes, **flags)
    variables = vig_jax.load_weights(file, variant, **sizes)
    expected = vig_jax.predictor(model, variables, 20, (48, 32))(images)
    expected = np.asarray(jax.nn.softmax(expected))
    answers, numbers = tmp_path / "answers.json", tmp_path / "numbers.json"
    loss = -np.log(expected[np.arange(20), np.repeat(np.arange(10), 2)]).mean()
    run = tmp_path / "run"
    assert main(["convert", str(file), str(run), *options("plain_fmt")]) == 0
    for way in (["--weights", str(file), *options("plain_fmt")], [str(run)]):
        size = ["--image-size", "48x32", "--batch-size", "20"]
        predict = [*way, str(image_folder), "--top", "1", *size]
        assert main(["predict", *predict, "--json", str(answers)]) == 0
        found = [answer["top"][0]["probability"] for answer in json.loads(answers.read_text())]
        assert found == pytest.approx(expected.max(axis=1), abs=1e-5)
        evaluate = [*way, "--data-path", str(image_folder), "--workers", "0", *size]
        assert main(["evaluate", *evaluate, "--json", str(numbers)]) == 0
        assert json.loads(numbers.read_text())["loss"] == pytest.approx(loss, rel=1e-5)


def test_raw_or_averaged(tmp_path, capsys):
    file, name = GOLDEN / "plain_fmt_ckpt.pth", "plain_fmt"
    folder = tmp_path / "checkpoint"
    assert main(["convert", str(file), str(folder), *options(name)]) == 0
    for ema in (True, False):
        section = "model_ema" if ema else "model"
        expected = vig_jax.load_weights(file, "vig_t", ema=ema, **PLAIN)
        restored = load_for_inference(folder, ema=ema)
        assert restored.description == f"weights from {file}, {section}"
        jax.tree.map(np.testing.assert_array_equal, restored.variables, expected)
        again = vig_jax.load_weights(folder, "vig_t", ema=ema, **PLAIN)
        jax.tree.map(np.testing.assert_array_equal, again, expected)
        alone = tmp_path / section
        option = "--ema" if ema else "--raw"
        assert main(["convert", str(file), str(alone), option, *options(name)]) == 0
        restored = load_for_inference(alone)
        jax.tree.map(np.testing.assert_array_equal, restored.variables, expected)
        back = tmp_path / f"{section}.safetensors"
        assert main(["convert", str(folder), str(back), option]) == 0
        jax.tree.map(
            np.testing.assert_array_equal, vig_jax.load_weights(back, "vig_t", **PLAIN), expected
        )
    restored = restore_weights(GOLDEN / "plain_fmt.safetensors", "vig_t", settings=PLAIN)
    assert restored.ema is None
    assert "not taken   optimizer, lr_scheduler" in capsys.readouterr().out


def test_verify(tmp_path, capsys):
    file = GOLDEN / "plain_fmt_ckpt.pth"
    for target in ("out", "out.safetensors"):
        command = ["convert", str(file), str(tmp_path / target), "--verify", *options("plain_fmt")]
        assert main(command) == 0
    report = capsys.readouterr().out
    assert report.count("verified    logits of random images differ by 0 at most") == 3


def test_nothing_half_written(tmp_path, capsys, monkeypatch):
    name, file = "plain_fmt", str(GOLDEN / "plain_fmt_ckpt.pth")
    target = tmp_path / "weights.safetensors"
    target.write_text("mine")
    arguments = ["convert", file, str(target), *options(name)]
    assert main(arguments) == 1
    assert "exists already: --force replaces it" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("vig_jax.inference.convert.model_from_config", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*arguments, "--force", "--verify"])
    assert target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    assert main([*arguments, "--force"]) == 0
    assert target.stat().st_size > 100_000
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    assert main(["convert", file, str(folder), "--force", *options(name)]) == 1
    assert "with other contents" in capsys.readouterr().err
    (folder / "thesis.txt").unlink()
    for _ in range(2):
        assert main(["convert", file, str(folder), "--force", *options(name)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "weights.safetensors"]


def test_no_code_of_a_file_runs(tmp_path, capsys):
    import os

    from tests.weights.torch_writer import Call, save

    file, touched = tmp_path / "evil.pth", tmp_path / "touched"
    save({"model": Call(os.system, (f"touch {touched}",))}, file)
    photo = str(tmp_path / "photo.png")
    Image.new("RGB", (8, 8)).save(photo)
    for command in (
        ["predict", "--weights", str(file), "--model", "vig_t", photo],
        ["evaluate", "--weights", str(file), "--model", "vig_t"],
        ["convert", str(file), str(tmp_path / "out"), "--model", "vig_t"],
    ):
        assert main(command) == 1
        assert "evil.pth: it asks to run posix.system, which is refused" in capsys.readouterr().err
    assert not touched.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--weights", "FILE", "."], "it needs --model NAME (model_name in Python)"),
        (["predict", "FILE", "."], "does not name its model: it needs --model NAME"),
        (["evaluate", "--weights", "FILE"], "needs --model NAME"),
        (["evaluate"], "name a run, or --weights FILE"),
        (["evaluate", "runs/x", "--model", "vig_t"], "--model needs --weights"),
        (["evaluate", "runs/x", "--weights", "FILE"], "a run (runs/x) and --weights"),
        (["predict", "runs/x"], "only runs/x is given"),
        (["evaluate", "--weights", "absent.pth", "--model", "vig_t"], "no weight file at absent"),
        (["evaluate", "--weights", "FILE", "--model", "vig_t", "--set", "depth"], "KEY=VALUE"),
        (
            ["evaluate", "--weights", "FILE", "--model", "vig_t", "--set", "dept=1"],
            "config.model.dept is not a setting; did you mean 'config.model.depth'?",
        ),
        (["convert", "FILE", "out"], "does not name its model: it needs --model NAME"),
        (["convert", "FILE", "out.pth", "--model", "vig_t"], "are read, not written"),
        (["convert", "FILE", "out", "--to", "safetensors"], "must end in .safetensors"),
        (["convert", "absent.pth", "out", "--model", "vig_t"], "no weight file at absent.pth"),
    ],
)
def test_mistakes(arguments, message, capsys):
    file = str(GOLDEN / "plain_fmt_ckpt.pth")
    assert main([file if a == "FILE" else a for a in arguments]) == 1
    assert message in capsys.readouterr().err


def test_images_of_other_classes_are_refused(image_folder, capsys, tmp_path):
    arguments = ["evaluate", "--data-path", str(image_folder), "--workers", "0"]
    fewer = tmp_path / "fewer.safetensors"
    from vig_jax.weights.load import save_safetensors

    variables = vig_jax.load_weights(
        GOLDEN / "plain_fmt_ckpt.pth", "vig_t", **(PLAIN | {"num_classes": 3})
    )
    save_safetensors(variables["params"], fewer, model_name="vig_t", averaged=None)
    assert main([*arguments, "--weights", str(fewer), *options("plain_fmt")]) == 1
    assert "the data set has 10 classes, the model 3" in capsys.readouterr().err
    variables = vig_jax.load_weights(
        GOLDEN / "plain_fmt_ckpt.pth", "vig_t", **(PLAIN | {"num_classes": 1000})
    )
    save_safetensors(variables["params"], fewer, model_name="vig_t", averaged=None)
    assert main([*arguments, "--weights", str(fewer), *options("plain_fmt")]) == 1
    printed = capsys.readouterr().err
    assert "the data set has 10 classes that the model does not know: c0, c1" in printed
    assert "the model's 1000 classes are tench, goldfish" in printed


def test_imagenet_names():
    assert len(class_ids()) == len(set(class_names())) == 1000
    assert list(class_ids()) == sorted(class_ids())
    assert class_names()[0] == "tench"
    assert class_names()[134] == "crane (n02012849)"
    assert class_names()[999] == "toilet tissue"


def test_weights_that_are_not_finite_end_in_one_line(tmp_path, capsys):
    from vig_jax.weights.load import save_safetensors

    variables = vig_jax.load_weights(GOLDEN / "plain_fmt_ckpt.pth", "vig_t", **PLAIN)
    variables["params"]["blocks_0"]["mlp"]["gate_proj"]["kernel"][0, 0] = np.nan
    file = tmp_path / "broken.safetensors"
    save_safetensors(variables["params"], file, model_name="vig_t", averaged=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    model = ["--weights", str(file), *options("plain_fmt")]
    for command in (
        ["predict", *model, str(tmp_path / "photo.png")],
        ["evaluate", *model, "--data-path", str(tmp_path)],
        ["convert", str(file), str(tmp_path / "out"), *options("plain_fmt")],
    ):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert "broken.safetensors: 1 arrays have values that are NaN or infinite" in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "runs/x", "a.png", "--top", "0"], "--top: 0 must be at least 1"),
        (["evaluate", "runs/x", "--workers", "-1"], "--workers: -1 must be at least 0"),
        (
            ["evaluate", "runs/x", "--json", f"{__file__}/x.json"],
            "test_weights.py cannot be created",
        ),
        (["evaluate", "runs/x", "--json", "tests"], "tests is a folder: name a file"),
        (["report", "~no.such.user/x"], "~no.such.user"),
    ],
)
def test_options_are_checked_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_weights_without_a_head_cannot_classify(command, image_folder, tmp_path, capsys):
    variant, sizes, _ = MODELS["plain_fmt"]
    params = vig_jax.load_weights(GOLDEN / "plain_fmt_ckpt.pth", variant, **sizes, num_classes=0)
    file = tmp_path / "body.safetensors"
    save_safetensors(params["params"], file, model_name=variant, averaged=None)
    data = [str(image_folder)] if command == "predict" else ["--data-path", str(image_folder)]
    assert main([command, "--weights", str(file), *options("plain_fmt"), *data]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "cannot classify" in errors[-1]
    assert "config.init_weights" in errors[-1]
