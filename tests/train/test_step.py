"""The update itself: against upstream's trajectory, and its contract."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vig_jax
from configs import common
from tests import golden
from vig_jax.config import parse
from vig_jax.models import ViG
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.losses import soft_cross_entropy
from vig_jax.tasks.protocol import Aux
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.optim.schedule import make_schedule
from vig_jax.train.state import TrainState, init_state
from vig_jax.train.step import check_accumulation, make_train_step
from vig_jax.weights import upstream

FOLDER = Path(__file__).parent / "golden"
MODELS = Path(__file__).parents[1] / "models" / "golden"
CONFIG = parse(common.get_config()).optimizer


class TestTask:
    """The parts of a task that the step does not use."""

    __test__ = False
    model = None
    batch_spec = {}  # noqa: RUF012

    def init(self, key):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MixedTask(TestTask):
    """Soft cross-entropy on images and targets that are mixed already."""

    model: object

    def loss(self, variables, batch, key):
        logits = self.model.apply(variables, batch["image"], train=True)
        return jnp.mean(soft_cross_entropy(logits, batch["target"])), Aux()


def mixed_batch(case, step, classes):
    """Update `step`'s images and targets, mixed with the reversed batch, in float64."""
    name = f"train/{case['model']}/{step['update']}"
    images = golden.images("train", name.removeprefix("train/"), (case["batch"], 3, 64, 64))
    hot = np.eye(classes)[step["labels"]] * (1 - case["smoothing"]) + case["smoothing"] / classes
    lam = step["lam"]
    mixed = [lam * x + (1 - lam) * x[::-1] for x in (np.asarray(images, np.float64), hot)]
    return {"image": mixed[0], "target": mixed[1]}


def digests(params, prefix):
    """The stored form of a parameter tree, under upstream's names."""
    return {
        f"{prefix}.{name}": np.array(
            [np.sum(value * golden.noise(f"probe/{name}", value.shape)), np.linalg.norm(value)]
        )
        for name, value in upstream.from_params(params).items()
    }


# Upstream's evaluation halves the merged scan of the plain models once more than its training.
@pytest.mark.parametrize(
    ("variant", "name", "evaluation"),
    [
        ("vig_t", "plain_t", {"merge_scale": 0.25}),
        pytest.param("vig_h_t", "hier_a", {}, marks=pytest.mark.slow),
    ],
    ids=["vig_t", "vig_h_t"],
)
def test_nine_updates_match_upstream(variant, name, evaluation):
    case, arrays = golden.load(FOLDER, f"steps_{name}")
    description, _ = golden.load(MODELS, name)
    # The scan over tokens compiles fastest.
    model = vig_jax.create_model(
        variant, **description["model"], drop_path_rate=0.0, gla_implementation="reference"
    )
    state_dict = golden.weights(description["keys"], description["multipliers"])
    assert golden.digest(state_dict) == case["weights_sha256"]
    config = dataclasses.replace(
        CONFIG,
        base_lr=case["base_lr"],
        warmup_lr=case["warmup_lr"],
        min_lr=case["min_lr"],
        lr_batch=case["batch"],
        warmup_epochs=float(case["warmup_epochs"]),
        weight_decay=case["weight_decay"],
        clip_norm=case["clip_grad"],
    )
    with jax.enable_x64(True):
        schedule = make_schedule(
            config,
            batch_size=case["batch"],
            steps_per_epoch=case["updates_per_epoch"],
            total=case["epochs"] * case["updates_per_epoch"],
        )
        optimizer = make_optimizer(config, schedule)
        params = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), upstream.to_params(state_dict, model)
        )
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            key=jax.random.PRNGKey(0),
        )
        step = make_train_step(
            MixedTask(model), optimizer, schedule, ema_decay=case["ema_decay"], mesh=make_mesh()
        )
        for expected in case["steps"]:
            batch = mixed_batch(case, expected, description["model"]["num_classes"])
            state, metrics = step(state, batch)
            np.testing.assert_allclose(metrics["lr"], expected["lr"], rtol=1e-12)
            np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
            np.testing.assert_allclose(
                metrics["grad_norm"], expected["grad_norm_before_clip"], rtol=1e-6
            )
        ours = digests(state.params, "param") | digests(state.ema_params, "ema")
        images = golden.images(name, "native", description["images"]["native"])
        evaluate = jax.jit(model.clone(**evaluation).apply)
        for kind, tree in (("model", state.params), ("ema", state.ema_params)):
            logits = evaluate({"params": tree}, jnp.asarray(images, jnp.float64))
            error = golden.relative_error(logits, arrays[f"logits_after.{kind}"])
            assert error < 1e-6, (kind, error)
    assert ours.keys() == {key for key in arrays if key.startswith(("param.", "ema."))}
    for key, value in ours.items():
        norm = arrays[key][1]
        np.testing.assert_allclose(value, arrays[key], rtol=0, atol=1e-6 * norm, err_msg=key)


@dataclasses.dataclass(frozen=True)
class NoisyLine(TestTask):
    """A line fitted to noisy points; the noise comes from the key."""

    def init(self, key):
        return {"params": {"kernel": jax.random.normal(key, (2, 1))}}

    def loss(self, variables, batch, key):
        noise = jax.random.normal(key, batch["y"].shape)
        error = batch["x"] @ variables["params"]["kernel"] - batch["y"] - noise
        return jnp.mean(error**2), Aux()


@pytest.fixture
def line():
    optimizer = make_optimizer(CONFIG, lambda step: 0.1)
    state = init_state(NoisyLine(), optimizer, seed=3, ema=True)
    step = make_train_step(
        NoisyLine(), optimizer, lambda step: 0.1, ema_decay=0.75, mesh=make_mesh()
    )
    generator = np.random.default_rng(0)
    batch = {
        "x": generator.normal(size=(8, 2)).astype(np.float32),
        "y": generator.normal(size=(8, 1)).astype(np.float32),
    }
    return state, step, batch


def test_average_follows_the_parameters(line):
    state, step, batch = line
    expected = np.asarray(state.ema_params["kernel"])
    for _ in range(3):
        state, _ = step(state, batch)
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["kernel"])
    np.testing.assert_allclose(state.ema_params["kernel"], expected, rtol=1e-6)


def test_step_counts_keeps_the_key_and_redraws(line):
    state, step, batch = line
    key = np.asarray(state.key)
    losses = []
    for expected_step in range(1, 4):
        state = state.replace(params={"kernel": jnp.zeros((2, 1))})
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        assert int(state.step) == expected_step
    assert len(set(losses)) == 3  # the same parameters and batch, another draw
    np.testing.assert_array_equal(state.key, key)


def test_given_state_is_consumed(line):
    state, step, batch = line
    step(state, batch)
    assert state.params["kernel"].is_deleted()


@dataclasses.dataclass(frozen=True)
class Line(TestTask):
    """A line without noise, and a point that it goes through."""

    def init(self, key):
        params = {
            "patch_embed": {"kernel": jnp.array([[1.0], [2.0]])},
            "head": {"bias": jnp.array([0.5]), "kernel": jnp.array([[1.5]])},
        }
        return {"params": params}

    def loss(self, variables, batch, key):
        params = variables["params"]
        y = batch["x"] @ params["patch_embed"]["kernel"] @ params["head"]["kernel"]
        return jnp.mean((y + params["head"]["bias"] - batch["y"]) ** 2), Aux()


def steps_of(batch, count=3, *, freeze="", **options):
    config = dataclasses.replace(CONFIG, freeze=freeze, clip_norm=0.5)
    optimizer = make_optimizer(config, lambda step: 0.1, ViG())
    state = init_state(Line(), optimizer, seed=3, ema=True)
    step = make_train_step(
        Line(),
        optimizer,
        lambda step: 0.1,
        ema_decay=0.7,
        mesh=make_mesh(),
        freeze=freeze,
        head_prefixes=ViG().head_prefixes,
        **options,
    )
    metrics = []
    for _ in range(count):
        state, new = step(state, batch)
        metrics.append(jax.device_get(new))
    return jax.device_get(state), metrics


@pytest.fixture
def points():
    generator = np.random.default_rng(1)
    return {
        "x": generator.normal(size=(12, 2)).astype(np.float32),
        "y": generator.normal(size=(12, 1)).astype(np.float32),
    }


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(points, parts):
    whole, whole_metrics = steps_of(points)
    state, metrics = steps_of(points, accumulation_steps=parts)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-5)
    chex.assert_trees_all_close(state, whole, rtol=1e-5)
    assert int(state.step) == 3  # updates, not parts


def test_parts_have_their_draws(line):
    state, _, batch = line
    optimizer = make_optimizer(CONFIG, lambda step: 0.1)
    step = make_train_step(
        NoisyLine(),
        optimizer,
        lambda step: 0.1,
        ema_decay=0.0,
        mesh=make_mesh(),
        accumulation_steps=2,
    )
    key = jax.random.fold_in(state.key, 0)
    parts = [{name: x[i : i + 4] for name, x in batch.items()} for i in (0, 4)]
    expected = np.mean(
        [
            NoisyLine().loss(state.variables, part, jax.random.fold_in(key, i))[0]
            for i, part in enumerate(parts)
        ]
    )
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_frozen_parameters_stay_to_the_bit(points):
    state, metrics = steps_of(points, freeze="backbone")
    start = Line().init(None)["params"]
    for tree in (state.params, state.ema_params):
        chex.assert_trees_all_equal(tree["patch_embed"], jax.device_get(start["patch_embed"]))
        assert (tree["head"]["kernel"] != start["head"]["kernel"]).all()
    sizes = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(sizes) == [(1,), (1,), (1, 1), (1, 1)]  # Adam's moments of the head alone
    # Clipping and the logged norm use the gradient of the trained parameters only.
    grads = jax.grad(lambda params: Line().loss({"params": params}, points, None)[0])(start)
    np.testing.assert_allclose(metrics[0]["grad_norm"], optax.tree.norm(grads["head"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "parts", "message"),
    [(8, 3, "batch of 8 .* 3 parts on 1 devices.*multiple of 3"), (8, 0, "at least 1")],
)
def test_parts_that_cannot_be(batch_size, parts, message):
    with pytest.raises(ValueError, match=message):
        check_accumulation(batch_size, parts, make_mesh())


def test_same_seed_same_state():
    optimizer = make_optimizer(CONFIG, lambda step: 0.1)
    one, two, other = (init_state(NoisyLine(), optimizer, seed=s, ema=False) for s in (1, 1, 2))
    chex.assert_trees_all_equal(one, two)
    assert one.ema_params is None
    assert not np.array_equal(one.params["kernel"], other.params["kernel"])


@dataclasses.dataclass(frozen=True)
class Counting(Line):
    """A line whose model counts its training passes and remembers the last inputs' mean."""

    def init(self, key):
        return {**super().init(key), "stats": {"passes": jnp.zeros(()), "mean": jnp.zeros(())}}

    def loss(self, variables, batch, key):
        loss, _ = super().loss(variables, batch, key)
        mean = jnp.mean(batch["x"])
        stats = {"passes": variables["stats"]["passes"] + 1, "mean": mean}
        return loss, Aux({"mean": mean}, {"stats": stats})


@pytest.mark.parametrize("parts", [1, 2])
def test_mutable_collections_follow_every_pass(points, parts):
    optimizer = make_optimizer(CONFIG, lambda step: 0.1)
    state = init_state(Counting(), optimizer, seed=3, ema=True)
    step = make_train_step(
        Counting(),
        optimizer,
        lambda step: 0.1,
        ema_decay=0.75,
        mesh=make_mesh(),
        accumulation_steps=parts,
    )
    state, metrics = step(state, points)
    stats = state.mutable["stats"]
    assert float(stats["passes"]) == parts
    last = points["x"][-12 // parts :]
    np.testing.assert_allclose(stats["mean"], last.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean"], points["x"].mean(), rtol=1e-5)
    assert float(state.ema_mutable["stats"]["passes"]) == pytest.approx(0.25 * parts)
