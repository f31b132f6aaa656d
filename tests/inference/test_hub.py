"""Hub folders: written and read back, by functions and by commands, and refused when wrong."""

import csv
import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

import vig_jax
from tests.weights import dense_case
from vig_jax.cli.main import main
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.weights.initial import classifier_variables, with_sizes_of_start
from vig_jax.weights.load import save_safetensors
from vig_jax.weights.published import published_config
from vig_jax.weights.run_folder import metrics_of

SIZES = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1}
NAMES = ("cat", "dog", "owl")

pytestmark = pytest.mark.usefixtures("compilation_cache")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def init(module):
    """Returns random variables, cheaper than initial ones."""
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: generator.normal(0, 0.1, x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return vig_jax.create_model("vig_t", num_classes=3, **SIZES)


@pytest.fixture(scope="module")
def variables(model):
    return init(model)


@pytest.fixture
def folder(tmp_path, model, variables):
    vig_jax.save_pretrained(
        tmp_path / "pets",
        model,
        variables,
        class_names=NAMES,
        metrics={"top1": 0.9125},
        licence="apache-2.0",
    )
    return tmp_path / "pets"


def test_a_module_comes_back(folder, model, variables):
    loaded = vig_jax.from_pretrained(folder)
    same(loaded.variables, variables)
    assert loaded.model == model.clone(dtype=np.float32)
    assert loaded.metadata["class_names"] == list(NAMES)
    assert loaded.metrics == {"top1": 0.9125}
    assert (loaded.step, loaded.ema) == (0, None)
    assert loaded.config.data.image_size == 32
    headless = vig_jax.load_weights(folder, num_classes=0, **SIZES)
    assert "head" not in headless["params"]


def test_the_card_says_what_is_in_the_folder(folder, model, variables, tmp_path):
    card = (folder / "README.md").read_text()
    for line in (
        "license: apache-2.0",
        "pipeline_tag: image-classification",
        "| model | `vig_t`, 3 classes |",
        "| top1 | 0.9125 |",
        "32 x 32 pixels: the shorter side is resized (bicubic) to the crop divided by 0.875",
        "The weights are under the licence `apache-2.0`.",
    ):
        assert line in card
    vig_jax.save_pretrained(tmp_path / "bare", model, variables)
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "license: unknown" in card
    assert "No metrics are stored" in card
    assert "trained on" not in card
    assert "hustvl/ViG may be used is unclear" in card


@pytest.mark.parametrize("name", ["vig_s", "vig_h_s"])
def test_settings_of_a_module_are_stored(name, tmp_path):
    sizes = (
        {"embed_dims": (32,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}
        if "_h_" in name
        else {**SIZES, "merge_scale": 0.3}
    )
    module = vig_jax.create_model(name, num_classes=0, drop_path_rate=0.05, **sizes)
    variables = init(module)
    vig_jax.save_pretrained(tmp_path / "x", module, variables)
    loaded = vig_jax.from_pretrained(tmp_path / "x")
    assert loaded.model == module.clone(dtype=np.float32)
    same(loaded.variables, variables)


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_dense_models_come_back(kind, tmp_path):
    module, variables = getattr(dense_case, kind)("vig_h_t")
    file = tmp_path / "x.safetensors"
    mutable = {key: tree for key, tree in variables.items() if key != "params"}
    save_safetensors(
        variables["params"], file, model_name="vig_h_t", averaged=True, mutable=mutable
    )
    loaded = vig_jax.from_pretrained(file, settings=dense_case.FOUR)
    vig_jax.save_pretrained(tmp_path / "folder", loaded, metrics={"mIoU": 0.5})
    again = vig_jax.from_pretrained(tmp_path / "folder")
    same(again.variables, variables)
    assert again.model == loaded.model
    assert (again.ema, again.metrics) == (True, {"mIoU": 0.5})
    assert type(again.model) is type(module)
    with pytest.raises(ConfigError, match="takes whole images, not crops"):
        vig_jax.data_config(again)
    file = tmp_path / "folder" / "config.json"
    config = json.loads(file.read_text())
    config["config"]["task"] = {"name": "classification"}
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"differ: .*are those of a {kind}"):
        vig_jax.from_pretrained(tmp_path / "folder")


def test_metrics_of_a_run():
    run = {"metrics": {"eval/top1": 0.5, "eval/ema_top1": 0.75, "train/loss": 1.0}}
    assert metrics_of(run, "params") == {"top1": 0.5}
    assert metrics_of(run, "ema_params") == {"top1": 0.75}


def test_no_path_of_this_machine_is_stored(folder, tmp_path):
    loaded = vig_jax.from_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    assert values["config"]["data"]["path"] is None
    assert values["config"]["train"]["compilation_cache"] == ""
    vig_jax.save_pretrained(tmp_path / "again", loaded)
    for file in ("config.json", "model.safetensors"):
        text = (tmp_path / "again" / file).read_bytes()
        assert str(tmp_path).encode() not in text
    same(vig_jax.from_pretrained(tmp_path / "again").variables, loaded.variables)


def test_commands_take_and_make_folders(folder, tmp_path, capsys):
    run, file, again = tmp_path / "run", tmp_path / "x.safetensors", tmp_path / "again"
    assert main(["convert", str(folder), str(run), "--verify"]) == 0
    assert main(["convert", str(folder), str(file)]) == 0
    command = ["convert", str(run), str(again), "--to", "hub", "--verify", "--license", "mit"]
    assert main(command) == 0
    assert "license: mit" in (again / "README.md").read_text()
    before = vig_jax.from_pretrained(folder)
    for path in (run, again):
        after = load_for_inference(path)
        assert after.config.model == before.config.model
        same(after.variables, before.variables)
    same(vig_jax.load_weights(file, **SIZES), before.variables)
    capsys.readouterr()
    image = tmp_path / "val" / "dog" / "dog.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (40, 40), (9, 99, 199)).save(image)
    assert main(["predict", str(folder), str(image), "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    options = ["--data-path", str(tmp_path), "--workers", "0", "--batch-size", "1"]
    assert main(["evaluate", str(folder), *options, "--json", str(tmp_path / "m.json")]) == 0
    top1 = json.loads((tmp_path / "m.json").read_text())["top1"]
    assert top1 in (0.0, 1.0)
    models, table = [str(folder), str(tmp_path / "absent"), str(again)], tmp_path / "t.csv"
    capsys.readouterr()
    assert main(["evaluate", *models, *options, "--csv", str(table)]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'absent'}: ")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["weights"] for row in rows] == models
    assert [row["model"] for row in rows] == ["vig_t", "", "vig_t"]
    assert [float(row["top1"]) for row in rows[::2]] == [top1, top1]
    size = sum(x.size for x in jax.tree.leaves(before.variables))
    assert [int(row["parameters"]) for row in rows[::2]] == [size, size]
    assert "holds no finished checkpoint" in rows[1]["error"]
    assert main(["evaluate", *models, *options, "--json", str(tmp_path / "m.json")]) == 1
    assert "3 models are given: --csv is for several" in capsys.readouterr().err


def test_a_run_starts_from_a_folder(folder, model, tmp_path):
    config = published_config("vig_t", settings={"img_size": 32})
    config = dataclasses.replace(config, init_weights=str(folder))
    started = with_sizes_of_start(config, tmp_path / "new")
    assert (started.model.embed_dim, started.model.depth) == (32, 1)
    started = dataclasses.replace(started, model=dataclasses.replace(started.model, num_classes=3))
    reordered = {"class_names": NAMES[::-1]}
    variables, line = classifier_variables(started, model, reordered)
    kernel = vig_jax.from_pretrained(folder).variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel[:, ::-1])
    assert line.startswith(f"starting from {folder}")


def change(folder, **values):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in values.items():
        config["config"]["model"][key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 4}, "differ: a new head for 4 classes"),
        ({"img_size": 64}, "differ: position embedding resized"),
        ({"depth": 2}, r"differ: model\.safetensors: the weights do not fit the model.*missing"),
        ({"name": "vig_s"}, "differ: the weights are those of vig_t, not of vig_s"),
        ({"dept": 2}, r"unknown settings: config\.model\.dept"),
        ({"embed_dim": "wide"}, "does not describe a model of this version"),
    ],
)
def test_config_and_weights_that_differ(folder, values, message, capsys):
    change(folder, **values)
    with pytest.raises(WeightsError, match=message):
        vig_jax.from_pretrained(folder)
    assert main(["predict", str(folder), str(folder / "README.md")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", []),
        ("metadata", {"class_names": 3}),
        ("metadata", {"class_names": [{}]}),
        ("metrics", {"top1": "high"}),
        ("metrics", None),
        ("updates", "many"),
        ("updates", -1),
    ],
)
def test_values_of_other_types_are_refused(folder, key, value):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(WeightsError, match=f"is damaged: {key}: fetch"):
        vig_jax.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vig_jax": 1}', '{"vig_jax": 2}', "[" * 10**5])
def test_other_configs_are_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json") as error:
        vig_jax.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_opening_a_folder_imports_nothing(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["config"]["task"] = {"name": "evil_task"}
    file.write_text(json.dumps(config))
    (folder / "evil_task.py").write_text("raise SystemExit")
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="'evil_task' is not a task"):
        _ = vig_jax.from_pretrained(folder).model
    assert "evil_task" not in set(sys.modules) - before


def test_the_hub(folder, monkeypatch):
    calls = []

    def snapshot_download(name, revision, allow_patterns):
        calls.append((name, revision, tuple(allow_patterns)))
        if name == "me/gone":
            raise OSError("404\nnot found")
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        vig_jax.from_pretrained("me/pets")
    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    loaded = vig_jax.from_pretrained("me/pets", revision="v1")
    assert calls == [("me/pets", "v1", ("config.json", "model.safetensors", "README.md"))]
    assert loaded.metrics == {"top1": 0.9125}
    with pytest.raises(ConfigError, match=r"me/gone cannot be fetched from .* Hub: 404$"):
        vig_jax.from_pretrained("me/gone")


def test_mistakes(folder, tmp_path, model, variables):
    with pytest.raises(FileExistsError, match="exists already"):
        vig_jax.save_pretrained(folder, model, variables)
    vig_jax.save_pretrained(folder, model, variables, overwrite=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other contents than a hub folder"):
        vig_jax.save_pretrained(folder, model, variables, overwrite=True)
    with pytest.raises(ConfigError, match="without variables"):
        vig_jax.save_pretrained(tmp_path / "x", model)
    with pytest.raises(ConfigError, match="has both"):
        vig_jax.save_pretrained(tmp_path / "x", vig_jax.from_pretrained(folder), variables)
    with pytest.raises(ConfigError, match="holds vig_t, not vig_s"):
        vig_jax.from_pretrained(folder, "vig_s")
    odd = model.clone(use_out_act=False)
    with pytest.raises(ConfigError, match=r"no setting of config\.model describes"):
        vig_jax.save_pretrained(tmp_path / "x", odd, variables)
    with pytest.raises(FileNotFoundError):
        vig_jax.from_pretrained(tmp_path / "absent" / "folder")
    assert not (tmp_path / "x").exists()
