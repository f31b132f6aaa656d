"""Run by test_rules.py in a process with eight simulated devices: state that is split by rules."""

import contextlib
import functools
import re
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from configs import common
from kernels_pallas.testing import interpret
from tests.sharding.collectives import collectives
from tests.tasks.detection import scenes
from vig_jax.config import MeshConfig, parse, recipes
from vig_jax.errors import ConfigError, DamagedCheckpointError
from vig_jax.evaluation.evaluate import make_predict_step
from vig_jax.sharding.mesh import make_mesh, place_batch
from vig_jax.sharding.rules import FSDP, Largest, shardings
from vig_jax.tasks.registry import make_task
from vig_jax.train.checkpoint import Checkpoints, RunInfo
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step

RATE = 1e-2
SMALL = (("(params|ema_params|opt_state)/", Largest(at_least=256)), (".*", PartitionSpec()))
SIZES = {
    "vig_t": {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1},
    "vig_h_t": {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1,) * 4},
}
PADDING = 6 * 16 * 16 - 5 * 5 * 3 * 16
SHAPES = [(data, fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8]


class Run:
    """A tiny run on a mesh: its state, and its compiled step."""

    def __init__(self, data, fsdp, name="vig_t", implementation="reference"):
        values = common.get_config()
        values.model.update(SIZES[name], name=name, num_classes=4, drop_path_rate=0.2)
        values.model.update(dtype="float32", gla_implementation=implementation)
        side = 16 if name == "vig_t" else 32
        values.data.update(image_size=side, mixup_group=2, rand_augment_layers=0)
        values.data.erase_probability = 0.0
        values.mesh.update(data=data, fsdp=fsdp)
        self.config = parse(values)
        self.mesh = make_mesh(jax.devices()[: data * fsdp], self.config.mesh)
        self.bundle = make_task(self.config, {})
        self.optimizer = make_optimizer(self.config.optimizer, lambda step: RATE)
        with jax.set_mesh(self.mesh):
            self.split = shardings(jax.eval_shape(self.initial), self.mesh, SMALL)
            new_state = jax.jit(self.initial, out_shardings=self.split)
            kernels = interpret if implementation == "pallas_triton" else contextlib.nullcontext
            with kernels():
                self.state = new_state()
                self.step = self.lowered().compile()

    def initial(self):
        return init_state(self.bundle.task, self.optimizer, seed=0, ema=True)

    def lowered(self):
        step = make_train_step(
            self.bundle.task,
            self.optimizer,
            lambda step: RATE,
            ema_decay=0.9,
            mesh=self.mesh,
            split=self.split,
        )
        return step.lower(self.state, self.batch(0))

    def batch(self, number):
        """The batch of an update: it depends on nothing else."""
        generator = np.random.default_rng(number)
        side = self.config.data.image_size
        image = generator.integers(0, 256, (16, side, side, 3), np.uint8)
        label = generator.integers(0, 4, 16).astype(np.int32)
        return place_batch({"image": image, "label": label}, self.mesh)

    def update(self, *numbers):
        """Returns losses and norms of some updates."""
        values = []
        for number in numbers:
            self.state, metrics = self.step(self.state, self.batch(number))
            values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return values

    @property
    def info(self):
        return RunInfo(self.config, {}, "data", "data", "top1")


def check_close(values, run, expected, one):
    """Compares losses, norms, parameters, EMA and moments with those of one device."""
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    for leaf, expected_leaf in zip(*map(jax.tree.leaves, (run.state, one)), strict=True):
        difference = np.abs(jax.device_get(leaf).astype(np.float64) - expected_leaf)
        # Adam's first updates are the signs of gradients, some of which are all rounding.
        assert np.mean(difference) < 1e-4, (run.mesh, leaf.shape)


def check_exchanges(run):
    """Only split parameters are gathered, and only gradients and scalars are summed."""
    params, split = (jax.tree.leaves(tree.params) for tree in (run.state, run.split))
    pairs = zip(params, split, strict=True)
    gathered = sorted(x.shape for x, s in pairs if not s.is_fully_replicated)
    found = collectives(run.step)
    assert sorted(c.shape for c in found if c.kind == "all-gather") == gathered
    assert bool(gathered) == (run.mesh.shape.get("fsdp", 1) > 1)
    assert {c.kind for c in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    summed = sum(c.size for c in found if c.kind == "all-reduce")
    total = sum(x.size for x in params)
    # The stem's first kernel is padded, and the norm of split gradients is a sum of scalars.
    assert total <= summed <= total + PADDING + 2 * len(params), (total, found)


def check_checkpoint(run, other, expected, one):
    """A checkpoint of one mesh continues on another; damage to split arrays is found."""
    folder = Path(tempfile.mkdtemp())
    like = jax.eval_shape(run.initial)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        patch.setattr(
            "vig_jax.train.checkpoint.shardings", functools.partial(shardings, rules=SMALL)
        )
        checkpoints = stack.enter_context(Checkpoints(folder, keep=2))
        checkpoints.save(2, run.state, run.info, {})
        checkpoints.wait()
        other.state = checkpoints.restore(2, like, other.info, other.mesh)
        same = jax.tree.map(lambda x, split: x.sharding == split, other.state, other.split)
        assert all(jax.tree.leaves(same))
        other_values = other.update(2)
        check_close(other_values, other, expected[2:], one)
        patch.setattr("vig_jax.weights.run_folder.zlib.crc32", lambda data: 1)
        with pytest.raises(DamagedCheckpointError, match=r"digests of \d+ arrays differ"):
            checkpoints.restore(2, like, other.info, other.mesh)


def check_evaluation(run):
    """Split parameters are gathered to predict; batches are not."""
    predict = make_predict_step(run.bundle.evaluation, mesh=run.mesh)
    batch = dict(run.batch(0), weight=np.ones(16, np.float32))
    with jax.set_mesh(run.mesh):
        compiled = predict.lower(run.state.variables, batch).compile()
    found = collectives(compiled)
    params = {x.shape for x in jax.tree.leaves(run.state.params)}
    assert {c.shape for c in found if c.kind == "all-gather"} <= params
    summed = {c.shape for c in found if c.kind != "all-gather"}
    assert summed <= {(), (4, 4)}, summed  # the counts of pairs of classes


def check_vig_b():
    """Eight devices hold less than a seventh of the state of two blocks of ViG-B each."""
    values = common.get_config()
    values.model.update(name="vig_b", num_classes=1000, depth=2)
    config = parse(values)
    task = make_task(config, {}).task
    optimizer = make_optimizer(config.optimizer, lambda step: RATE)
    state = jax.eval_shape(lambda: init_state(task, optimizer, seed=0, ema=True))
    used = {}
    for fsdp in (1, 8):
        mesh = make_mesh(shape=MeshConfig(fsdp=fsdp))
        same = jax.jit(lambda x: x, in_shardings=(shardings(state, mesh, FSDP),))
        memory = same.lower(state).compile().memory_analysis()
        used[fsdp] = memory.argument_size_in_bytes
        print(f"ViG-B, fsdp={fsdp}: {used[fsdp]:,} bytes of parameters, EMA and moments")
    assert used[8] <= used[1] / 7


def check_sums(dtype, expected):
    """Gradients of bfloat16 weights are summed in float32, or in bfloat16 if a run asks for it."""
    values = common.get_config()
    values.model.update(SIZES["vig_t"], name="vig_t", num_classes=4, dtype="bfloat16")
    values.data.update(image_size=16, mixup_group=2, rand_augment_layers=0)
    task, mesh = make_task(parse(values), {}).task, make_mesh()
    optimizer = make_optimizer(parse(values).optimizer, lambda step: RATE)
    state = jax.eval_shape(lambda: init_state(task, optimizer, seed=0, ema=False))
    batch = {
        name: jax.ShapeDtypeStruct((16, *x.shape), x.dtype) for name, x in task.batch_spec.items()
    }
    with jax.set_mesh(mesh):
        options = {"ema_decay": 0.0, "mesh": mesh, "reduce_dtype": dtype}
        step = make_train_step(task, optimizer, lambda step: RATE, **options)
        # The kernels' own program, which is not compiled here.
        text = step.trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
    summed = re.findall(r"stablehlo\.all_reduce.*?\}\) : \(tensor<([^>]*)>", text, re.DOTALL)
    matrices = [x for x in summed if len(x.split("x")) > 2]
    assert len(matrices) >= 6
    assert {x.split("x")[-1] for x in summed} == expected, summed


def check_refusals():
    """Meshes that a run cannot use are refused in one sentence."""
    run = functools.partial(make_train_step, None, None, None, ema_decay=0.0)
    explicit = jax.make_mesh((8,), ("data",))
    rows = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    for mesh in (explicit, rows):
        with pytest.raises(ConfigError, match=r"automatic axes named data, fsdp, sequence: make"):
            run(mesh=mesh)


def segmentation():
    """Returns the task and a batch of a tiny segmenter, which has batch statistics."""
    values = recipes.ade20k("vig_t")
    values.model.update(patch_size=16, embed_dim=16, depth=1, num_heads=1, num_classes=3)
    values.model.update(dtype="float32", gla_implementation="reference", drop_path_rate=0.0)
    values.task.update(channels=8, aux_channels=8)
    values.data.image_size = 64
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (8, 64, 64, 3), np.uint8),
        "mask": generator.choice(np.array([0, 1, 2, 255], np.uint8), (8, 64, 64)),
        "size": np.tile(np.array([64, 50], np.int32), (8, 1)),
    }
    return make_task(parse(values), {}).task, batch


def check_task(task, batch):
    """An update of a dense task on split state has the loss and the gradient of one device."""
    optimizer = make_optimizer(parse(common.get_config()).optimizer, lambda step: RATE)
    results = []
    for data, fsdp in ((1, 1), (2, 4)):
        mesh = make_mesh(jax.devices()[: data * fsdp], MeshConfig(data, fsdp))
        with jax.set_mesh(mesh):
            initial = jax.jit(lambda: init_state(task, optimizer, seed=0, ema=True))
            split = shardings(jax.eval_shape(initial), mesh, SMALL)
            state = jax.jit(initial, out_shardings=split)()
            step = make_train_step(
                task, optimizer, lambda step: RATE, ema_decay=0.9, mesh=mesh, split=split
            )
            placed = place_batch(batch, mesh)
            compiled = step.lower(state, placed).compile()
            found = {c.shape for c in collectives(compiled) if c.kind != "all-reduce"}
            whole = {x.shape for x in jax.tree.leaves(state.params)}
            state, metrics = compiled(state, placed)
        assert found <= whole, found - whole
        assert all(x.is_fully_replicated for x in jax.tree.leaves(state.mutable))
        results.append(jax.device_get((metrics["loss"], metrics["grad_norm"], state.mutable)))
    one, eight = map(jax.tree.leaves, results)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def compare(name, shapes, implementation="reference", updates=3):
    """Compares runs on meshes with that of one device, whose results are returned."""
    one = Run(1, 1, name)
    expected = one.update(*range(updates))
    state = jax.device_get(one.state)
    for data, fsdp in shapes:
        run = Run(data, fsdp, name, implementation)
        if implementation == "reference":
            check_exchanges(run)
        check_close(run.update(*range(updates)), run, expected, state)
        print(f"{name}, data={data}, fsdp={fsdp}, {implementation}: equal")


if sys.argv[1:] == ["slow"]:
    check_sums("bfloat16", {"bf16", "f32"})
    check_task(*segmentation())
    check_task(scenes.make_task(), scenes.batch(8, 3))
    compare("vig_t", SHAPES[1:])
    compare("vig_h_t", [(2, 4), (1, 8)])
    compare("vig_t", [(1, 2)], "pallas_triton", updates=1)
else:
    check_refusals()
    check_sums("float32", {"f32"})
    check_vig_b()
    one = Run(1, 1)
    expected = one.update(0, 1, 2)
    last = jax.device_get(one.state)
    replicated, split = Run(8, 1), Run(2, 4)
    check_exchanges(replicated)
    check_exchanges(split)
    check_evaluation(split)
    np.testing.assert_allclose(replicated.update(0, 1), expected[:2], rtol=1e-4)
    check_checkpoint(replicated, split, expected, last)
print("all equal")
