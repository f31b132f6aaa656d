"""Exported programs: run in processes without this package, verified, and refused when wrong."""

import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kernels_pallas
import vig_jax
from tests.weights import dense_case
from vig_jax.cli.main import main
from vig_jax.errors import ConfigError, ExportError
from vig_jax.inference import export_formats
from vig_jax.inference.export_program import program_of
from vig_jax.inference.predictor import predictor
from vig_jax.weights.load import save_safetensors

PLAIN = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
FOUR = {"embed_dims": (8, 16, 16, 16), "depths": (1,) * 4, "num_heads": (1, 2, 2, 2)}
NAMES = ("cat", "dog", "owl")
SIDE = 32
SLOW = ("vig_s", "vig_b", "vig_h_s", "vig_h_b")
MODELS = ("vig_t", "vig_h_t", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))

pytestmark = pytest.mark.usefixtures("compilation_cache")


def sizes(name):
    return FOUR if "_h_" in name else PLAIN


def random_variables(model, width):
    """Returns random variables, cheaper than initial ones."""
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, SIDE, width, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: generator.normal(0, 0.1, x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module", params=["vig_t"])
def folder(request, tmp_path_factory):
    """A small model of random weights, as a hub folder."""
    model = vig_jax.create_model(request.param, num_classes=3, **sizes(request.param))
    variables = random_variables(model, SIDE)
    path = tmp_path_factory.mktemp("export") / "pets"
    vig_jax.save_pretrained(path, model, variables, class_names=NAMES)
    return path


def images(count):
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def logits_of(loaded, batch):
    return np.asarray(predictor(loaded.model, loaded.variables, len(batch), SIDE)(batch))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "names",
    [("xla_chunked", "xla"), ("xla_unrolled", "portable")],
    ids=["chunked", "unrolled"],
)
def test_a_symbolic_batch(name, names):
    """Traces every model in the forms for StableHLO and for other formats, and runs `vig_t`."""
    model = vig_jax.create_model(name, num_classes=3, **sizes(name))
    variables = jax.tree.map(jnp.asarray, random_variables(model, 48))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 32, 48, 3"), jnp.float32)
    run = jax.jit(lambda x: model.apply(variables, x))
    with kernels_pallas.implementations(*names):
        exported = jax.export.export(run)(shape)
    if "xla_unrolled" in names:
        assert "stablehlo.while" not in exported.mlir_module()
    assert str(exported.out_avals[0].shape) == "(b, 3)"
    if name != "vig_t":  # it compiles fastest
        return
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, SIDE, 48, 3)), "float32")
    expected = run(x)
    atol = 1e-5 * abs(expected).max()
    np.testing.assert_allclose(exported.call(x), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(exported.call(x[:1]), expected[:1], rtol=0, atol=atol)


def test_a_process_with_only_jax_runs_the_file(folder, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    target = tmp_path / "pets.stablehlo"
    command = ["export", str(folder), str(target), "--platforms", "cpu,cuda", "--verify"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "images uint8[b, 32, 32, 3]" in printed
    assert "differ by" in printed
    facts = json.loads((tmp_path / "pets.stablehlo.json").read_text())
    assert facts["class_names"] == list(NAMES)
    assert facts["outputs"] == {"logits": "float32[b, 3]"}
    np.save(tmp_path / "images.npy", images(3))
    program = """
        import sys
        import numpy as np
        from jax import export
        run = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
        assert run.platforms == ("cpu", "cuda")
        np.save(sys.argv[3], run.call(np.load(sys.argv[2]))["logits"])
        assert not {"vig_jax", "flax", "kernels_pallas"} & set(sys.modules)
    """
    files = [target, tmp_path / "images.npy", tmp_path / "logits.npy"]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, files)],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    expected = logits_of(vig_jax.from_pretrained(folder), images(3))
    np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-5, atol=1e-6)
    assert main(command) == 1
    assert "exists already: --force" in capsys.readouterr().err


def test_the_server_of_the_page(folder, tmp_path):
    """Runs the code of docs/deploy.md and asks for the class of an image."""
    pytest.importorskip("flatbuffers")
    loaded = vig_jax.from_pretrained(folder)
    vig_jax.export(loaded, tmp_path / "pets.stablehlo", platforms=["cpu"])
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "do_POST" in block
    ]
    assert len([line for line in code.splitlines() if line]) <= 25
    (tmp_path / "serve.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    photo = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 90, 10)).save(photo, "PNG")
    command = [sys.executable, "serve.py", "pets.stablehlo", str(port)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as server:
        try:
            answer = ask(f"http://127.0.0.1:{port}", photo.getvalue(), server)
        finally:
            server.kill()
    pixels = np.full((1, SIDE, SIDE, 3), (200, 90, 10), np.uint8)
    assert json.loads(answer) == {"class": NAMES[int(logits_of(loaded, pixels).argmax())]}


def ask(address, data, server):
    """Posts data as soon as the server listens."""
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, data=data, timeout=60) as reply:
                return reply.read()
        except urllib.error.URLError:
            time.sleep(0.1)
    pytest.fail("the server does not listen")


@pytest.mark.parametrize("folder", MODELS, indirect=True)
def test_onnx(folder, tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    target = tmp_path / "pets.onnx"
    assert main(["export", str(folder), str(target), "--verify", "--image-size", str(SIDE)]) == 0
    assert "onnx: " in capsys.readouterr().out
    session = runtime.InferenceSession(str(target))
    expected = logits_of(vig_jax.from_pretrained(folder), images(3))
    for count in (1, 3):
        (logits,) = session.run(["logits"], {"images": images(3)[:count]})
        np.testing.assert_allclose(
            logits, expected[:count], rtol=0, atol=1e-4 * abs(expected).max()
        )
    facts = json.loads(session.get_modelmeta().custom_metadata_map["vig_jax"])
    assert facts["class_names"] == list(NAMES)


def test_other_sizes_and_features(folder):
    loaded = vig_jax.from_pretrained(folder)
    program = program_of(loaded, "features", (64, 48))
    assert program.outputs == ("stride_16",)
    shapes = jax.eval_shape(program.run, *program.batched(2))
    assert shapes["stride_16"].shape == (2, 4, 3, 16)


def loaded_dense(kind, tmp_path):
    """Returns a segmenter or detector that was written to a file."""
    _, variables = getattr(dense_case, kind)("vig_h_t")
    file = tmp_path / "x.safetensors"
    mutable = {key: tree for key, tree in variables.items() if key != "params"}
    save_safetensors(
        variables["params"], file, model_name="vig_h_t", averaged=True, mutable=mutable
    )
    return vig_jax.from_pretrained(file, settings=dense_case.FOUR)


def test_dense_models(tmp_path):
    segmenter = loaded_dense("segmenter", tmp_path)
    program = program_of(segmenter, "labels", 64)
    assert jax.eval_shape(program.run, *program.batched(2))["labels"].shape == (2, 64, 64)
    detector = loaded_dense("detector", tmp_path)
    program = program_of(detector, image_size=64)
    assert list(program.inputs) == ["images", "sizes"]
    assert program.outputs == ("boxes", "classes", "masks", "scores")
    with pytest.raises(ConfigError, match="a detector has objects or features"):
        program_of(detector, "labels", 64)
    with pytest.raises(ConfigError, match="multiple of 32"):
        program_of(detector, image_size=40)


@pytest.mark.slow
def test_onnx_of_a_segmenter(tmp_path):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package)
    segmenter, options = loaded_dense("segmenter", tmp_path), {"image_size": 64, "verify": True}
    report = vig_jax.export(segmenter, tmp_path / "x.onnx", **options)
    assert report.differences["logits"] < 1e-4
    assert report.outputs == {"logits": "float32[b, 16, 16, 3]"}


@pytest.fixture
def all_packages(monkeypatch):
    """Pretends that the optional packages are installed."""
    monkeypatch.setattr(export_formats.importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("all_packages")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x.stablehlo", "--platforms", "cpu,cudo"], "unknown platform 'cudo'; did you mean"),
        (["x.stablehlo", "--platforms", ","], "platforms are empty"),
        (["x.stablehlo", "--platforms", "tpu", "--verify"], "add cpu to the platforms"),
        (["x.stablehlo", "--opset", "18"], "an opset is for ONNX"),
        (["x.stablehlo", "--outputs", "labels"], "a classifier has logits or features"),
        (["x.stablehlo", "--to", "onnx"], "does not fit the format onnx"),
        (["x.stablehlo", "--image-size", "4"], "needs at least 7 on each side"),
        (["x.onnx", "--platforms", "cpu"], "platforms are for StableHLO"),
        (["x.onnx", "--dtype", "bfloat16"], "ONNX files compute in float32"),
        (["x.onnx", "--model", "vig_s"], "holds vig_t, not vig_s"),
    ],
)
def test_one_line_for_wrong_options(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder), *options]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_formats.importlib.util, "find_spec", lambda name: None)
    loaded = vig_jax.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"needs jax2onnx, onnx: pip install 'vig-jax\[onnx\]'"):
        vig_jax.export(loaded, tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match=r"flatbuffers: pip install 'vig-jax\[export\]'"):
        vig_jax.export(loaded, tmp_path / "x")


@pytest.mark.usefixtures("all_packages")
def test_the_objects_of_a_detector_need_a_fixed_batch_and_loops(tmp_path):
    detector = loaded_dense("detector", tmp_path)
    with pytest.raises(ConfigError, match="--batch 1"):
        vig_jax.export(detector, tmp_path / "x", image_size=64)
    with pytest.raises(ConfigError, match="ONNX files have no loops"):
        vig_jax.export(detector, tmp_path / "x.onnx", image_size=64)


@pytest.mark.usefixtures("all_packages")
@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x * 1.01, "more than 1e-04: nothing"), (lambda x: x[:1], "has shape")],
)
def test_a_wrong_file_is_not_kept(folder, tmp_path, monkeypatch, change, message):
    module = importlib.import_module("vig_jax.inference.export")
    loaded = vig_jax.from_pretrained(folder)

    def wrong(path, inputs):
        return {"logits": change(logits_of(loaded, inputs[0]))}

    monkeypatch.setattr(module, "write_stablehlo", lambda *args: args[-1].write_bytes(b"program"))
    monkeypatch.setattr(module, "run_stablehlo", wrong)
    with pytest.raises(ExportError, match=message):
        vig_jax.export(loaded, tmp_path / "x", verify=True)
    assert not list(tmp_path.iterdir())
