"""Run by test_sequence.py in a process with eight simulated devices: rows of images are split."""

import contextlib
import functools
import itertools
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from PIL import Image

import vig_jax
from configs import common
from kernels_pallas import bidirectional_gla
from kernels_pallas.testing import TOLERANCES, interpret, random_inputs, rms_relative_error
from tests.sharding.collectives import collectives
from vig_jax.cli.main import main
from vig_jax.config import MeshConfig, parse, recipes
from vig_jax.errors import ConfigError
from vig_jax.inference.predictor import predictor
from vig_jax.layers.gated_linear_attention import GatedLinearAttention
from vig_jax.layers.locality import DepthwiseConv
from vig_jax.layers.stem import HalvingConv, PatchConv
from vig_jax.sharding.kernels import MAPS, shard_kernel
from vig_jax.sharding.mesh import images_sharded, make_mesh, place_batch
from vig_jax.sharding.rules import Largest, gathered, placed, shardings
from vig_jax.sharding.sequence import ExchangeStates
from vig_jax.tasks.registry import make_task
from vig_jax.train.loop import run as train

FLOAT32 = TOLERANCES["float32"]
SIZES = {
    "vig_t": {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1},
    "vig_h_t": {"embed_dims": (8,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4},
}


def mesh_of(**axes):
    shape = {"data": 1} | axes
    return make_mesh(jax.devices()[: math.prod(shape.values())], MeshConfig(**shape))


def assert_close(actual, expected, allowed, what):
    """Compares trees array by array, by the error relative to the root mean square."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for number, (mine, right) in enumerate(pairs):
        error = rms_relative_error(mine, right)
        assert error <= allowed, f"{what}: array {number} is off by {error:.1e} > {allowed:.0e}"


def check_scans():
    """Both scans and all their gradients on 4 and 8 devices, also for decays of zero."""

    def gradients(run, arrays, cotangent):
        out, pullback = jax.vjp(run, *arrays)
        return out, pullback(cotangent)

    def inputs(gates):
        shape = {"batch": 1, "tokens": 48, "heads": 2, "key_width": 4, "value_width": 6}
        *arrays, _, cotangent = random_inputs(0, gates=gates, **shape)
        return arrays, cotangent

    whole = functools.partial(bidirectional_gla, implementation="reference")
    cases = {gates: inputs(gates) for gates in ("typical", "strong", "reset")}
    run = jax.jit(functools.partial(gradients, whole))
    expected = {gates: run(*case) for gates, case in cases.items()}
    for devices, name in ((4, "xla_chunked"), (8, "reference")):
        part = functools.partial(
            bidirectional_gla, exchange=ExchangeStates("sequence"), implementation=name
        )
        with jax.set_mesh(mesh_of(sequence=devices)):
            split = shard_kernel(part, [MAPS] * 5, MAPS)
            run = jax.jit(functools.partial(gradients, split))
            for gates, case in cases.items():
                out, grads = jax.device_get(run(*case))
                assert_close(out, expected[gates][0], FLOAT32.forward, f"{devices} {gates}")
                assert_close(grads, expected[gates][1], FLOAT32.gradient, f"{devices} {gates}")


def check_borders():
    """A row at a border of devices has the rows above and below it; outside there are zeros.

    Rows are numbered, and the kernels add up what they see of the rows above and below.
    """
    x = np.arange(1.0, 17.0, dtype=np.float32)[None, :, None, None] * np.ones((2, 1, 8, 3))
    x = x.astype(np.float32)
    kernel = np.zeros((3, 3, 1, 3), np.float32)
    kernel[:, 1, 0] = [[1000.0], [0.0], [1.0]]
    expected = 1000 * np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    expected += np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
    for devices in (2, 4, 16 // 2):
        with jax.set_mesh(mesh_of(sequence=devices)):
            run = jax.jit(DepthwiseConv().apply)
            actual = run({"params": {"kernel": kernel}}, x)
            assert actual.sharding.spec[1] == "sequence"
        np.testing.assert_array_equal(actual, expected)
    for layer in (PatchConv(4, 4), PatchConv(4, 2), HalvingConv(4)):
        variables = layer.init(jax.random.key(0), x)
        expected = jax.jit(layer.apply)(variables, x)
        with jax.set_mesh(mesh_of(data=2, sequence=4)):
            actual = jax.jit(lambda v, x, layer=layer: layer.apply(v, x))(variables, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def training_case(name):
    """Returns a training loss, its parameters and a batch of four images."""
    values = common.get_config()
    values.model.update(name=name, num_classes=3, dtype="float32", **SIZES[name])
    values.model.update(drop_path_rate=0.3, gla_implementation="reference")
    values.data.update(image_size=64, mixup_group=4, rand_augment_layers=0)
    task = make_task(parse(values), {}).task
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8),
        "label": np.arange(4, dtype=np.int32) % 3,
    }

    def loss(params, batch):
        return task.loss({"params": params}, batch, jax.random.key(1))

    return loss, jax.jit(task.init)(jax.random.key(0))["params"], batch


def features_case(name):
    """Returns a loss of the maps of a backbone, with the maps; its parameters; and images."""
    model = vig_jax.create_model(name, 0, gla_implementation="reference", **SIZES[name])
    side = model.native_size or 32  # the gradient of a resized embedding needs another sum
    images = np.random.default_rng(0).standard_normal((2, 64, side, 3)).astype(np.float32)

    def loss(params, batch):
        maps = model.apply({"params": params}, batch["image"], method="features")
        weights = [jnp.arange(1.0, x.size + 1).reshape(x.shape) / x.size for x in maps]
        return sum(jnp.sum(x * w) for x, w in zip(maps, weights, strict=True)), maps

    return loss, jax.jit(model.init)(jax.random.key(0), images)["params"], {"image": images}


def check_model(case, *shapes):
    """Losses, maps and gradients on each mesh are those of one device, with split parameters."""
    loss, params, batch = case
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    rules = ((".*kernel", Largest(at_least=256)), (".*", PartitionSpec()))
    for shape in shapes:
        mesh = mesh_of(**shape)
        split = shardings(params, mesh, rules)

        def whole(params, batch, split=split):
            return loss(gathered(params, split), batch)

        with jax.set_mesh(mesh):
            inputs = placed(params, mesh, rules), place_batch(batch, mesh)
            run = jax.jit(jax.value_and_grad(whole, has_aux=True))
            compiled = run.lower(*inputs).compile()
            actual = jax.device_get(compiled(*inputs))
        assert_close(actual, expected, 1e-4, f"{shape}")
        check_collectives(compiled, params, shape["sequence"])


def check_collectives(compiled, params, devices):
    """No map is sent: only states of scans, single rows, parameters and their gradients."""
    found = collectives(compiled)
    shapes = {x.shape for x in jax.tree.leaves(params)}
    if "pos_embed" in params:  # the devices that share an image have the gradient of their rows
        _, tokens, width = params["pos_embed"].shape
        side = math.isqrt(tokens)
        shapes |= {(side // devices, side, width), (side, side, width)}
    for kind, shape in found:
        if kind in ("all-gather", "reduce-scatter"):
            states = len(shape) == 6  # [devices, directions, B, H, K, V + 1]
            assert (states and shape[-1] == 2 * shape[-2] + 1) or shape in shapes, shape
        elif kind == "collective-permute":  # [B, 1, w, D]
            assert shape[1] == 1
        else:
            assert kind == "all-reduce"
            pooled = len(shape) <= 2
            assert pooled or shape in shapes, f"an all-reduce of {shape}"
    assert {kind for kind, _ in found} >= {"all-gather", "reduce-scatter", "collective-permute"}


def check_explicit_axes():
    """Rows may be split over an explicit axis of this name, with and without an ambient mesh."""
    loss, params, batch = features_case("vig_t")
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    expected = run(params, batch)
    mesh = jax.make_mesh((2, 2), ("images", "sequence"), axis_types=(AxisType.Explicit,) * 2)
    everywhere = jax.device_put(params, jax.NamedSharding(mesh, PartitionSpec()))
    split = jax.NamedSharding(mesh, PartitionSpec("images", "sequence"))
    images = {"image": jax.device_put(batch["image"], split)}
    for ambient in (contextlib.nullcontext, lambda: jax.set_mesh(mesh)):
        with ambient():
            assert_close(jax.device_get(run(everywhere, images)), expected, 1e-4, "explicit axes")


def check_communication():
    """The stem sends two rows, a block one row and one state, whatever the number of rows."""
    model = vig_jax.create_model("vig_t", 3, gla_implementation="reference", **SIZES["vig_t"])
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 32, 3), "float32"))
    mesh = mesh_of(sequence=2)
    found = []
    for rows in (32, 128):
        images = jax.ShapeDtypeStruct((1, rows, 32, 3), "float32", sharding=images_sharded(mesh))
        with jax.set_mesh(mesh):
            run = jax.jit(lambda variables, images: model.apply(variables, images))
            found.append(collectives(run.lower(variables, images).compile()))
    rows = [("collective-permute", (1, 1, *x)) for x in ((4, 16), (8, 8), (32, 3))]
    states = [("all-gather", (2, 2, 1, 1, 8, 17))]
    assert found[0] == [*states, ("all-reduce", (1, 16)), *rows]
    assert found[1] == found[0]


def check_interpreted_kernels(gradients):
    """The mixer's Pallas kernels on two devices, each with an odd number of tokens."""
    x = np.random.default_rng(0).standard_normal((1, 6, 3, 16)).astype(np.float32)
    reference, pallas = (
        GatedLinearAttention(features=16, num_heads=1, gla_implementation=name)
        for name in ("reference", "pallas_triton")
    )
    variables = jax.tree.map(
        lambda leaf: 0.5 * np.random.default_rng(1).standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(reference.init, jax.random.key(0), x),
    )

    def run(layer, variables, x):
        if not gradients:
            return layer.apply(variables, x)
        return jax.grad(lambda *arrays: jnp.sum(layer.apply(*arrays) ** 2), (0, 1))(variables, x)

    expected = jax.jit(functools.partial(run, reference))(variables, x)
    with jax.set_mesh(mesh_of(sequence=2)), interpret():
        actual = jax.device_get(jax.jit(functools.partial(run, pallas))(variables, x))
    allowed = FLOAT32.gradient if gradients else FLOAT32.forward
    assert_close(actual, expected, allowed, "the mixer's kernels")


def check_lowering_for_gpus():
    """The program for GPUs has kernels and collectives side by side."""
    layer = GatedLinearAttention(features=32, num_heads=1, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 32, 16, 32), jnp.bfloat16)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def gradient(variables, x):
        return jax.grad(lambda v: jnp.sum(layer.apply(v, x).astype(jnp.float32)))(variables)

    with jax.set_mesh(mesh_of(sequence=2)):
        text = jax.jit(gradient).trace(variables, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") >= 8
    assert text.count("stablehlo.all_gather") == 2  # one for each pass
    assert "stablehlo.collective_permute" in text


def check_predictor():
    model = vig_jax.create_model("vig_t", 3, gla_implementation="reference", **SIZES["vig_t"])
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 16, 3), np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 16, 3), np.float32))
    expected = predictor(model, variables, 2, (32, 16))(images)
    split = predictor(model, variables, 2, (32, 16), mesh=mesh_of(data=2, sequence=4))
    np.testing.assert_allclose(split(images), expected, rtol=1e-4, atol=1e-5)
    assert split.compiled.input_shardings[0][1].spec == PartitionSpec("data", "sequence")
    with pytest.raises(ConfigError, match=r"batch_size=3 cannot be split over 2 .*multiple of 2"):
        predictor(model, variables, 3, (32, 16), mesh=mesh_of(data=2, sequence=4))


def check_refusals():
    """Checks that an error names the sizes that can be split."""
    for name, message in (
        ("vig_t", r"72 rows .* 4 devices .* stride 8: use a multiple of 32 .* example 64 or 96"),
        ("vig_h_t", r"72 rows .* stride 32: use a multiple of 128 rows, for example 128, or"),
    ):
        model = vig_jax.create_model(name, 3, **SIZES[name])
        images = np.zeros((1, 72, 64, 3), np.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        with jax.set_mesh(mesh_of(sequence=4)):
            with pytest.raises(ConfigError, match=message):
                jax.eval_shape(model.apply, variables, images)
            with pytest.raises(ConfigError, match=r"padded images cannot be split .* 4 devices"):
                jax.eval_shape(
                    functools.partial(model.apply, method="features"),
                    variables,
                    np.zeros((1, 128, 64, 3), np.float32),
                    sizes=np.array([[64, 32]]),
                )


def check_segmentation():
    """XLA splits the convolutions of heads; the loss and all gradients are those of one device."""
    values = recipes.ade20k("vig_h_t")
    values.model.update(num_classes=3, dtype="float32", drop_path_rate=0.0, **SIZES["vig_h_t"])
    values.model.gla_implementation = "reference"
    values.task.update(channels=8, aux_channels=8, dropout=0.3)
    values.data.image_size = 64
    task = make_task(parse(values), {}).task
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8),
        "mask": np.random.default_rng(1).choice(np.uint8([0, 1, 2, 255]), (2, 64, 64)),
        "size": np.full((2, 2), 64, np.int32),
    }
    variables = jax.jit(task.init)(jax.random.key(0))

    @jax.jit
    def gradient(variables, batch):
        return jax.grad(
            lambda params: task.loss({**variables, "params": params}, batch, jax.random.key(1))[0]
        )(variables["params"])

    expected = gradient(variables, batch)
    mesh = mesh_of(sequence=2)
    with jax.set_mesh(mesh):
        actual = gradient(variables, place_batch(batch, mesh))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(jax.device_get(actual), expected, atol=1e-4 * largest, rtol=1e-3)


def check_commands():
    """Training, evaluation and prediction with split rows, by the commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, label in itertools.product(("train", "val"), ("cat", "dog")):
            place = folder / "images" / split / label
            place.mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels // (1 + 3 * (label == "cat"))).save(place / f"{i}.png")
        values = common.get_config()
        values.model.update(
            dtype="float32", drop_path_rate=0.0, **SIZES["vig_t"] | {"img_size": 16}
        )
        values.data.update(path=str(folder / "images"), image_size=16, workers=0, mixup_group=4)
        values.data.rand_augment_layers = 0
        values.optimizer.update(lr_batch=8, warmup_epochs=1.0, warmup_lr=1e-4)
        values.train.update(batch_size=8, epochs=1, ema_decay=0.0, compilation_cache="")
        found = []
        for axes in ({}, {"data": 4, "sequence": 2}):
            values.mesh.update(axes)
            workdir = folder / f"run{len(found)}"
            train(parse(values), workdir)
            lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
            found.append([x["train/loss"] for x in lines if "train/loss" in x])
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
        results = []
        image = str(folder / "images" / "val" / "cat" / "0.png")
        for mesh in ([], ["--mesh", "data=4,sequence=2"]):
            file = folder / "result.json"
            options = ["--json", str(file), *mesh]
            assert main(["predict", str(folder / "run1"), image, *options]) == 0
            [prediction] = json.loads(file.read_text())
            results.append({x["class"]: x["probability"] for x in prediction["top"]})
            assert main(["evaluate", str(folder / "run1"), *options]) == 0
            results[-1]["loss"] = json.loads(file.read_text())["loss"]
        assert results[1] == pytest.approx(results[0], rel=1e-4)


def timed(check, *arguments):
    start = time.perf_counter()
    check(*arguments)
    print(f"{check.__name__}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


if sys.argv[1:] == ["slow"]:
    timed(check_model, training_case("vig_h_t"), {"sequence": 2}, {"data": 4, "sequence": 2})
    timed(check_model, features_case("vig_h_t"), {"sequence": 2})
    timed(check_model, features_case("vig_t"), {"sequence": 8}, {"fsdp": 2, "sequence": 4})
    timed(check_interpreted_kernels, True)
    timed(check_explicit_axes)
    timed(check_segmentation)
    timed(check_commands)
else:
    timed(check_refusals)
    timed(check_borders)
    timed(check_scans)
    timed(check_model, training_case("vig_t"), {"data": 2, "fsdp": 2, "sequence": 2})
    timed(check_communication)
    timed(check_predictor)
    timed(check_interpreted_kernels, False)
    timed(check_lowering_for_gpus)
print("all equal")
