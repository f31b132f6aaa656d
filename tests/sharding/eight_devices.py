"""Run by test_mesh.py in a process with eight simulated devices."""

import functools
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import kernels_pallas
import vig_jax
from configs import common
from kernels_pallas.testing import TOLERANCES, interpret, rms_relative_error
from tests.tasks.detection import scenes
from tests.tasks.segmentation.golden_net import Batches
from vig_jax.config import MeshConfig, parse, recipes
from vig_jax.errors import ConfigError
from vig_jax.layers import gated_linear_attention
from vig_jax.layers.gated_linear_attention import GatedLinearAttention
from vig_jax.sharding.kernels import ROWS, WHOLE, shard_kernel
from vig_jax.sharding.mesh import (
    DATA_AXIS,
    batch_sharded,
    check_batch_size,
    check_rows,
    make_mesh,
    place_batch,
    replicated,
    smallest_batch,
)
from vig_jax.sharding.per_image import per_image
from vig_jax.tasks.registry import make_task
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step

COLLECTIVE = re.compile(r"\b(?:all-gather|all-to-all|all-reduce|collective-permute)[.\w-]*\(")


def tiny_config(**data):
    values = common.get_config()
    values.model.update(num_classes=4, img_size=16, patch_size=8, embed_dim=32, depth=1)
    values.model.update(num_heads=1, drop_path_rate=0.2, dtype="float32")
    values.model.gla_implementation = "reference"  # compiles fastest
    values.data.update(image_size=16, mixup_group=4, rand_augment_layers=1)
    values.data.update(data)
    return parse(values)


@functools.cache
def initial_state():
    """In numpy, as steps consume what they are given."""
    config = tiny_config()
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-2)
    return jax.device_get(
        jax.jit(lambda: init_state(make_task(config, {}).task, optimizer, seed=0, ema=True))()
    )


def random_batch(generator, data):
    """Returns 16 images of 16 x 16 pixels; or packed, of up to 5 x 2 patches in rows of two."""
    pixels = functools.partial(generator.integers, 0, 256, dtype=np.uint8)
    labels = generator.integers(0, 4, 16).astype(np.int32)
    if not data.native_sizes:
        return {"image": pixels(size=(16, 16, 16, 3)), "label": labels}
    sides = [generator.integers(1, most, (8, 2), endpoint=True) for most in (5, 2)]
    sizes = np.stack(sides, axis=-1).astype(np.int32)
    patches = pixels(size=(8, 20, 8, 8, 3))
    return {"patches": patches, "sizes": sizes, "label": labels.reshape(8, 2)}


def losses(mesh, parts=1, updates=3, **data):
    """Some updates on the mesh, drop path and mixing included."""
    config = tiny_config(**data)
    task = make_task(config, {}).task
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-2)
    generator = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        state = jax.device_put(initial_state(), replicated(mesh))
        step = make_train_step(
            task,
            optimizer,
            lambda step: 1e-2,
            ema_decay=0.9,
            mesh=mesh,
            accumulation_steps=parts,
        )
        values = []
        for _ in range(updates):
            state, metrics = step(state, place_batch(random_batch(generator, config.data), mesh))
            values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(values), jax.device_get((state.params, state.ema_params))


def check_steps(rand_augment_layers=0):
    one_device = make_mesh(jax.devices()[:1])
    options = {"rand_augment_layers": rand_augment_layers}  # compiles long
    one, one_params = losses(one_device, **options)
    eight, eight_params = losses(make_mesh(), **options)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    # Adam's first updates are the signs of gradients, some of which are all rounding: an update
    # of 1e-2 either way.
    for a, b in zip(jax.tree.leaves(eight_params), jax.tree.leaves(one_params), strict=True):
        assert np.mean(np.abs(a - b)) < 1e-4


def check_native_sizes():
    """Drop path and erasing included: the draws do not depend on the devices."""
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "rand_augment_layers": 0}
    settings |= {"erase_probability": 0.5, "native_sizes": True, "max_tokens": 10, "row_images": 2}
    one, _ = losses(make_mesh(jax.devices()[:1]), updates=2, **settings)
    eight, _ = losses(make_mesh(), updates=2, **settings)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"24 images .* 1 parts .* rows of 2 .* multiple of 16"):
        check_rows(24, 2, make_mesh())


def check_init():
    """A task initialises its model with rows that the mesh can split."""
    task = make_task(tiny_config(), {}).task
    with jax.set_mesh(make_mesh()):
        jax.eval_shape(task.init, jax.random.key(0))


def check_accumulation():
    one_device = make_mesh(jax.devices()[:1])
    options = {"parts": 2, "updates": 1, "rand_augment_layers": 0, "erase_probability": 0.0}
    one, _ = losses(one_device, **options)
    eight, _ = losses(make_mesh(), **options)
    np.testing.assert_allclose(eight, one, rtol=1e-4)


def check_placement():
    mesh = make_mesh()
    rows = place_batch({"x": np.arange(16)}, mesh)["x"]
    assert rows.sharding.spec == PartitionSpec(DATA_AXIS)
    assert [s.data.tolist() for s in rows.addressable_shards][3] == [6, 7]
    with pytest.raises(ValueError, match=r"20 cannot be split over 8 devices.*example 16 or 24"):
        check_batch_size(20, mesh)
    mesh = make_mesh(shape=MeshConfig(fsdp=2, sequence=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 2}
    blocks = place_batch({"x": np.arange(8)}, mesh)["x"].addressable_shards
    assert [s.data.tolist() for s in blocks] == [[i, i + 1] for i in (0, 0, 2, 2, 4, 4, 6, 6)]
    check_batch_size(20, mesh)
    with pytest.raises(ConfigError, match=r"fsdp=3 x .*sequence=1 is 3, .* 8 .*one of 1, 2, 4, 8"):
        make_mesh(shape=MeshConfig(fsdp=3))
    with pytest.raises(
        ConfigError, match=r"data=2 x fsdp=2 x sequence=1 is 4, .*config.mesh.data=4, or 0"
    ):
        make_mesh(shape=MeshConfig(data=2, fsdp=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 4)
        with pytest.raises(ConfigError, match=r"in 2, which 4 processes cannot share"):
            make_mesh(shape=MeshConfig(sequence=4))


def check_shard_kernel():
    """Each device has its own rows only, forward and backward; an odd batch is refused."""
    seen = []

    def product(x, y):
        seen.append(x.shape)
        return x * y

    kernel = shard_kernel(product, (ROWS, ROWS), ROWS)
    mesh = make_mesh()
    x = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    batch = place_batch({"x": x, "y": x + 1}, mesh)
    with jax.set_mesh(mesh):
        assert smallest_batch() == 8
        gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(kernel(x, y))))(batch["x"], batch["y"])
        with pytest.raises(ConfigError, match=r"\[20, 3\].* 8 devices of mesh axis 'data'.* 16"):
            jax.eval_shape(kernel, jnp.zeros((20, 3)), jnp.zeros((20, 3)))
    np.testing.assert_array_equal(gradient, x + 1)
    assert gradient.sharding.spec[0] == DATA_AXIS
    assert set(seen) == {(2, 3)}
    columns = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    grid = shard_kernel(product, (PartitionSpec("rows", "columns"), WHOLE), PartitionSpec("rows"))
    with jax.set_mesh(columns):
        assert jax.eval_shape(grid, jnp.zeros((4, 8)), jnp.zeros(())).shape == (4, 2)
        jax.eval_shape(kernel, x, x)  # this mesh has no data axis to split over
    assert seen[-2:] == [(2, 2), (16, 3)]


def check_explicit_axes():
    """Images may be split over explicit axes of any name, with and without an ambient mesh."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}
    model = vig_jax.create_model("vig_t", 3, **sizes)
    images = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def squares(variables, images):
        return jnp.sum(model.apply(variables, images) ** 2)

    gradient = jax.jit(jax.grad(squares))
    expected = gradient(variables, images)
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Explicit,) * 2)
    placed = jax.device_put(images, jax.NamedSharding(mesh, PartitionSpec(("rows", "columns"))))
    everywhere = jax.device_put(variables, jax.NamedSharding(mesh, PartitionSpec()))
    actual = gradient(everywhere, placed)
    chex.assert_trees_all_close(jax.device_get(actual), expected, rtol=1e-4, atol=1e-6)
    with jax.set_mesh(mesh):  # tracing finds axes that do not fit
        jax.eval_shape(gradient, everywhere, placed)
    swiglu = jax.eval_shape(kernels_pallas.swiglu, placed.astype(jnp.bfloat16)[..., :2])
    assert swiglu.shape == (8, 16, 16, 1)
    with pytest.raises(NotImplementedError, match="call it inside jax"):
        kernels_pallas.swiglu(placed[..., :2], implementation="pallas_triton")
    segmenter = vig_jax.create_segmenter("vig_t", 3, channels=8, dropout=0.0, **sizes)
    state = jax.eval_shape(segmenter.init, jax.random.key(0), images)
    with jax.set_mesh(mesh):
        logits, _ = jax.eval_shape(
            functools.partial(segmenter.apply, train=True, mutable=["batch_stats"]),
            state,
            placed,
        )
    assert logits.sharding.spec[0] == ("rows", "columns")
    tiles = jax.device_put(images, jax.NamedSharding(mesh, PartitionSpec("rows", "columns")))
    with pytest.raises(ConfigError, match="models can split the batch, and rows"):
        jax.eval_shape(model.apply, variables, tiles)
    with jax.set_mesh(jax.make_mesh((8,), (DATA_AXIS,))):  # images that nobody has split
        assert jax.eval_shape(model.apply, variables, images).sharding.spec[0] is None


def check_interpreted_kernels():
    """Mapped over two devices, the mixer's Pallas kernels need no communication at all."""
    mesh = make_mesh(jax.devices()[:2])
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 2, 3, 16)).astype(np.float32)
    reference, pallas = (
        GatedLinearAttention(features=16, num_heads=1, gla_implementation=name)
        for name in ("reference", "pallas_triton")
    )
    variables = jax.tree.map(
        lambda leaf: 0.3 * generator.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(reference.init, jax.random.key(0), x),
    )

    def compiled():
        """Compiles a new function each time: JAX would reuse the trace of an old one."""
        run = jax.jit(
            lambda *arguments: pallas.apply(*arguments),
            in_shardings=(replicated(mesh), batch_sharded(mesh)),
        )
        with jax.set_mesh(mesh), interpret():
            return run.lower(variables, x).compile()

    mapped = compiled()
    actual = mapped(variables, jax.device_put(x, batch_sharded(mesh)))
    assert rms_relative_error(actual, reference.apply(variables, x)) < TOLERANCES["float32"].forward
    assert not COLLECTIVE.findall(mapped.as_text())
    # The same kernels without the mapping do communicate: the pattern finds it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_linear_attention, "shard_kernel", lambda kernel, *specs: kernel)
        assert COLLECTIVE.findall(compiled().as_text())


def check_padded_images():
    """Each device moves the tokens of its images, over automatic and explicit axes."""
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    model = vig_jax.create_model("vig_t", 0, gla_implementation="reference", **settings)
    generator = np.random.default_rng(0)
    images = generator.standard_normal((4, 16, 24, 3)).astype(np.float32)
    sizes = np.array([[16, 8], [8, 24], [16, 16], [8, 8]], np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def features(variables, images, sizes):
        return model.apply(variables, images, method="features", sizes=sizes)

    expected = features(variables, images, sizes)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), (DATA_AXIS,), axis_types=(kind,), devices=jax.devices()[:2])
        rows = jax.device_put((images, sizes), batch_sharded(mesh))
        with jax.set_mesh(mesh):
            run = features.lower(jax.device_put(variables, replicated(mesh)), *rows).compile()
            actual = run(jax.device_put(variables, replicated(mesh)), *rows)
        chex.assert_trees_all_close(jax.device_get(actual), expected, rtol=1e-5, atol=1e-6)
        assert not COLLECTIVE.findall(run.as_text())


def check_packed_images():
    """Each device packs the images of its rows, and has no part of another's."""
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    model = vig_jax.create_model("vig_t", 3, gla_implementation="reference", **settings)
    generator = np.random.default_rng(0)
    sides = ((8, 24), (16, 16), (8, 8), (24, 8))
    images = [generator.integers(0, 256, (*side, 3), np.uint8) for side in sides]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    make = functools.partial(vig_jax.packed_predictor, model, variables, tokens=7, most_images=2)
    split = make(rows=2, mesh=make_mesh(jax.devices()[:2]))
    chex.assert_trees_all_close(
        jax.device_get(split(images)), jax.device_get(make(rows=1)(images)), rtol=1e-5, atol=1e-6
    )
    assert not COLLECTIVE.findall(split.compiled.as_text())
    with pytest.raises(ConfigError, match="rows=3 cannot be split over 2 devices"):
        make(rows=3, mesh=make_mesh(jax.devices()[:2]))


def check_segmentation(*, gradients):
    """Loss, batch statistics and perhaps gradients of a segmenter are those of one device."""
    values = recipes.ade20k("vig_t")
    values.model.update(patch_size=16, embed_dim=16, depth=1, num_heads=1, num_classes=3)
    values.model.update(dtype="float32", gla_implementation="reference", drop_path_rate=0.0)
    values.task.update(channels=8, aux_channels=8, dropout=0.3)
    values.data.image_size = 64
    task = make_task(parse(values), {}).task
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (8, 64, 64, 3), np.uint8),
        "mask": generator.choice(np.array([0, 1, 2, 255], np.uint8), (8, 64, 64)),
        "size": np.tile(np.array([64, 50], np.int32), (8, 1)),
    }

    def run(params, stats, batch, key):
        variables = {"params": params, "batch_stats": stats}

        def loss(params):
            value, aux = task.loss({**variables, "params": params}, batch, key)
            return value, aux.mutable

        if gradients:
            return jax.value_and_grad(loss, has_aux=True)(params)
        return loss(params), None

    variables = jax.jit(task.init)(jax.random.key(0))
    key = jax.random.key(1)
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        with jax.set_mesh(mesh):
            state = jax.device_put(jax.device_get(dict(variables)), replicated(mesh))
            placed = place_batch(batch, mesh)
            results.append(
                jax.device_get(jax.jit(run)(state["params"], state["batch_stats"], placed, key))
            )
    (_, stats), _ = results[0]
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), stats["batch_stats"], state["batch_stats"]
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda x: x > 0, moved)))
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-3, atol=1e-5)


def check_label_maps():
    """Sliding windows: each device makes the label maps of its images."""
    labels, counts = Batches().run(make_mesh())
    assert len(labels.sharding.device_set) == 8
    expected = Batches().run()
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def check_per_image():
    """Images are sorted where they are: nothing is gathered."""

    def best(key, rows):
        scores = rows["scores"] + jax.random.uniform(key, rows["scores"].shape)
        return jax.lax.top_k(scores, 3), rows["size"]

    batch = {"scores": np.random.default_rng(0).normal(size=(16, 40)), "size": np.ones((16, 2))}
    keys = jax.random.split(jax.random.key(0), 16)
    expected = jax.jit(per_image(best))(keys, batch)
    mesh = make_mesh()
    placed = place_batch(batch, mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(per_image(best)).lower(keys, placed).compile()
    assert not COLLECTIVE.findall(compiled.as_text())
    chex.assert_trees_all_equal(compiled(keys, placed), expected)
    with jax.set_mesh(mesh):  # without the mapping, scores are gathered: the pattern finds it
        other = jax.jit(lambda x: jax.lax.top_k(x, 3)).lower(placed["scores"]).compile()
    assert COLLECTIVE.findall(other.as_text())


def check_detection(name, *, whole):
    """Losses of a detector, and if `whole` its gradients and detections, are those of one device.

    Sums are exchanged, and no rows: each device draws and pools for its images alone.
    """
    task = scenes.make_task(name)
    batch, key = scenes.batch(8, 3), jax.random.key(1)
    params = scenes.random_params(task, np.float32)

    def run(params, batch):
        def loss(params):
            total, aux = task.loss({"params": params}, batch, key)
            return total, aux.metrics

        if not whole:
            return loss(params)
        images = task.training_inputs(batch, key)
        found = task.model.apply({"params": params}, images, batch["size"])
        return jax.value_and_grad(loss, has_aux=True)(params), found

    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, replicated(mesh)), place_batch(batch, mesh)
            compiled = jax.jit(run).lower(*placed).compile()
            results.append(jax.device_get(compiled(*placed)))
    # Relative to the largest of each array: small logits are differences of large products.
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        difference = np.abs(one.astype(np.float64) - eight).max(initial=0)
        assert difference <= 1e-3 * np.abs(one).max(initial=0)
    assert not re.findall(r"\b(?:all-gather|all-to-all)[.\w-]*\(", compiled.as_text())


if sys.argv[1:] == ["slow"]:
    check_steps()
    check_steps(rand_augment_layers=1)
    check_accumulation()
    check_native_sizes()
    check_segmentation(gradients=True)
    check_detection("vig_h_t", whole=True)
else:
    check_placement()
    check_shard_kernel()
    check_explicit_axes()
    check_interpreted_kernels()
    check_padded_images()
    check_packed_images()
    check_init()
    check_segmentation(gradients=False)
    check_label_maps()
    check_per_image()
    check_detection("vig_t", whole=False)
print("all equal")
