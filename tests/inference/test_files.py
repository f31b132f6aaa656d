"""Finding, reading and drawing image files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vig_jax
from kernels_pallas.testing import TOLERANCES
from tests.data.photographs import encoded, photo
from vig_jax.data.preprocess import resize
from vig_jax.errors import ConfigError
from vig_jax.inference import files
from vig_jax.inference.file_predictor import PredictOptions, check_one_device
from vig_jax.inference.files import Classifier, Prediction, draw, find_images
from vig_jax.inference.predictor import Predictor
from vig_jax.layers.pixels import normalise
from vig_jax.sharding.mesh import make_mesh
from vig_jax.weights.published import published_config

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
TINY |= {"gla_implementation": "reference"}  # compiles fastest


def test_leftovers_of_other_programs_are_left_out(tmp_path):
    root = tmp_path / ".hidden"  # the folder that is named may have any name
    names = ("a.png", "b/c.JPG", "._a.png", "__MACOSX/a.png", "b/.ipynb_checkpoints/c.jpg", "d.txt")
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_images([root]) == [root / "a.png", root / "b" / "c.JPG"]
    assert find_images([root / "._a.png"]) == [root / "._a.png"]


def test_names_with_dollars_and_control_characters(tmp_path):
    name = "$a$ and $b\x1b[31m$"
    file = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    prediction = Prediction(file, ((name, 0.5),))
    assert draw([prediction], tmp_path / "figure.png", [name]) == 1
    assert "\x1b" not in str(prediction)
    assert r"$b\x1b[31m$ 50.0%" in str(prediction)
    assert prediction.to_json()["top"][0]["class"] == name


class Undecided(Predictor):
    """In place of a compiled model."""

    def __init__(self):
        self.image_size = 8, 8

    def __call__(self, images):
        assert images.shape[1:] == (8, 8, 3)
        return np.zeros((len(images), 2), np.float32)


@pytest.fixture
def classify(monkeypatch):
    """A function from files and settings of the data to predictions."""
    monkeypatch.setattr(files, "predictor", lambda *args, **settings: Undecided())

    def run(*paths, **settings):
        data = dataclasses.replace(published_config("vig_t").data, image_size=8, **settings)
        return list(
            Classifier(vig_jax.create_model("vig_t"), {}, data, ["cat", "dog"]).predict(paths)
        )

    return run


def random_variables(model):
    """Returns random variables, cheaper than initial ones."""
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * generator.standard_normal(x.shape), x.dtype),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )


def test_images_at_their_native_sizes(tmp_path):
    """Their probabilities are those of each image alone; a broken file leaves the others."""
    model = vig_jax.create_model("vig_t", num_classes=2, **TINY)
    variables = random_variables(model)
    apply = jax.jit(model.apply)
    data = published_config("vig_t").data
    settings = {"native_sizes": True, "max_tokens": 6, "row_images": 2, "image_size": 16}
    data = dataclasses.replace(data, **settings)
    images = [photo(24, 16, 1), photo(16, 24, 2), photo(50, 70, 3)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encoded(image, "PNG"))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    paths = [tmp_path / f"{name}.png" for name in (0, "broken", 1, 2)]
    first, broken, *rest = Classifier(model, variables, data, ["cat", "dog"]).predict(paths)
    assert "not a JPEG" in broken.error
    images[2] = np.asarray(Image.fromarray(images[2]).resize((16, 24), Image.Resampling.BICUBIC))
    for found, image in zip((first, *rest), images, strict=True):
        pixels = normalise(jnp.asarray(image)[None], data.mean, data.std)
        expected = jax.nn.softmax(apply(variables, pixels)[0])
        probabilities = dict(found.top)
        np.testing.assert_allclose(
            [probabilities["cat"], probabilities["dog"]],
            expected,
            rtol=TOLERANCES["float32"].forward,
        )


def test_the_limit_is_that_of_the_run(classify, tmp_path):
    for side in (30, 40):
        (tmp_path / f"{side}.png").write_bytes(encoded(photo(side, side, 0), "PNG"))
    paths = tmp_path / "30.png", tmp_path / "40.png"
    small, large = classify(*paths, max_image_pixels=1000)
    assert small.top
    assert "more than the limit max_image_pixels=1000" in large.error
    assert [found.error for found in classify(*paths)] == [None, None]
    predictions = [Prediction(path, (("cat", 0.5),)) for path in paths]
    assert draw(predictions, tmp_path / "figure.png", ["cat"]) == 2


def test_a_damaged_jpeg_is_predicted_and_named_or_left_out(classify, tmp_path):
    pytest.importorskip("simplejpeg")
    contents = bytearray(encoded(photo(60, 60, 0), "JPEG"))
    place = len(contents) // 2
    contents[place : place + 3] = b"\xff\xd7\x55"  # a restart marker where none is due
    (tmp_path / "a.jpg").write_bytes(contents)
    (tmp_path / "b.jpg").write_bytes(encoded(photo(60, 60, 0), "JPEG"))
    damaged, whole = classify(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert damaged.top
    assert damaged.damage.startswith("damaged, decodable: Corrupt JPEG")
    assert damaged.to_json()["damage"] == damaged.damage
    assert "(damaged, decodable: Corrupt JPEG" in str(damaged)
    assert whole.damage is None
    assert "damage" not in whole.to_json()
    (left_out,) = classify(tmp_path / "a.jpg", damaged_jpegs="leave_out")
    assert "config.data.damaged_jpegs=leave_out" in left_out.error


def test_probabilities_are_those_of_jax():
    logits = np.random.default_rng(0).normal(0, 3, (3, 7)).astype(np.float32)
    np.testing.assert_allclose(files._softmax(logits), jax.nn.softmax(logits), rtol=1e-5)


def test_few_photographs_do_not_load_the_fast_resize(classify, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MANY_FILES", 3)
    loaded = []
    monkeypatch.setattr(resize, "why_not", lambda: loaded.append(1))
    names = [tmp_path / f"{i}.png" for i in range(3)]
    for name in names:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(name)
    classify(*names[:2])
    assert not loaded
    classify(*names)
    assert loaded


def test_a_mesh_is_for_classifiers():
    check_one_device(PredictOptions())
    with pytest.raises(ConfigError, match=r"--mesh of \d+ devices is for classifiers: this model"):
        check_one_device(PredictOptions(mesh=make_mesh()))
