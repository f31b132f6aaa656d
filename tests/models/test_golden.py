"""Logits, inner features and gradients against upstream's, float32 and float64."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import vig_jax
from kernels_pallas import vig_mixer
from tests import golden
from vig_jax.layers.gated_linear_attention import GATE_NORMALIZER
from vig_jax.weights import upstream

FOLDER = Path(__file__).parent / "golden"
PLAIN = ("plain_t", "plain_s", "plain_x", "plain_eps", "plain_fmt")
HIERARCHICAL = ("hier_a", "hier_b", "hier_x", "hier_eps", "hier_fmt")
SMALL = PLAIN + HIERARCHICAL
EVALUATED = ("plain_t", "plain_s", "plain_x", "hier_a")  # training is tested for all of them
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
FULL = ("vig_t", "vig_s", "vig_b", "vig_h_t", "vig_h_s", "vig_h_b")
# Largest difference over largest magnitude, by the dtype of the computation.
LOGITS = {"float32": 1e-5, "float64": 1e-9}
GRADIENTS = {"float32": 1e-4, "float64": 1e-7}  # the stored gradients are rounded to float32
DIGESTS = {"float32": 1e-4, "float64": 1e-9}
FULL_SIZE_LOGITS = 2e-5  # float32; upstream's own float32 run of ViG-H is off by up to 7e-6
UPSTREAM_EVAL = 0.25  # upstream's evaluation of the plain models halves the merged scan twice


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def build(name: str, merge_scale: float, dtype: str, **settings):
    """Returns the model, its variables in `dtype`, and the golden case."""
    case, arrays = golden.load(FOLDER, name)
    plain = not name.startswith(("hier", "vig_h"))
    settings |= {"merge_scale": merge_scale} if plain else {}
    if name in HIERARCHICAL or (name in FULL and name != "vig_t"):
        settings.setdefault("gla_implementation", "reference")  # compiles fastest
    if name in FULL:
        keys, multipliers = [(key, shape) for key, shape, *_ in case["keys"]], {}
        variant = name
    else:
        keys, multipliers = case["keys"], case["multipliers"]
        settings |= case["model"]
        variant = "vig_t" if plain else "vig_h_t"
    model = vig_jax.create_model(variant, drop_path_rate=0.0, **settings)
    state_dict = golden.weights(keys, multipliers)
    assert golden.digest(state_dict) == case["weights_sha256"]
    params = jax.tree.map(lambda x: np.asarray(x, dtype), upstream.to_params(state_dict, model))
    return model, {"params": params}, case, arrays


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in EVALUATED),
        *(slow(name, "float64") for name in SMALL if name not in EVALUATED),
        *(slow(name, "float32") for name in SMALL),  # training and the full size test it, too
    ],
    indirect=["dtype"],
)
def test_evaluation_logits(name, dtype):
    model, variables, case, arrays = build(name, UPSTREAM_EVAL, dtype)
    apply = compiled(model)
    # Every resolution of one plain model in float64; else the native one and the ragged one, which
    # is not a multiple of any stride. Training covers the native one of the hierarchical models,
    # whose training path is their evaluation path.
    every = name == "plain_t" and dtype == "float64"
    tags = case["images"] if every else ("native", "72x56")
    if name in HIERARCHICAL:
        tags = ("72x56",)
    for tag in tags:
        images = golden.images(name, tag, case["images"][tag])
        logits = apply(variables, jnp.asarray(images, dtype))
        expected = arrays.get(f"logits64_f64interp.eval.{tag}", arrays[f"logits64.eval.{tag}"])
        assert logits.dtype == dtype
        assert golden.relative_error(logits, expected) < LOGITS[dtype], tag


@pytest.mark.parametrize("name", ["vig_h_t", *(slow(name) for name in FULL if name != "vig_h_t")])
def test_full_size_logits(name):
    model, variables, _, arrays = build(name, UPSTREAM_EVAL, "float32")
    images = golden.images(name, "native", (2, 3, 224, 224))
    logits = jax.jit(model.apply)(variables, images)
    assert golden.relative_error(logits, arrays["logits64.eval.native"]) < FULL_SIZE_LOGITS
    if name == "vig_t":
        images = golden.images(name, "256x192", (1, 3, 256, 192))
        logits = jax.jit(model.apply)(variables, images)
        assert golden.relative_error(logits, arrays["logits64.eval.256x192"]) < FULL_SIZE_LOGITS


@pytest.mark.slow
def test_full_size_gradients():
    name = "vig_t"
    model, variables, case, arrays = build(name, 0.5, "float32")
    images = golden.images(name, "native", (2, 3, 224, 224))[:1]
    logits, loss, gradients = forward_and_gradients(model, variables, images, name)
    assert golden.relative_error(logits, arrays["logits64.train.native"]) < LOGITS["float32"]
    chex.assert_trees_all_close(loss, arrays["loss64"], rtol=1e-4)
    check_digests(gradients, arrays, DIGESTS["float32"])
    assert set(gradients) == {key for key, *_ in case["keys"]}


# Settings that the others have, too.
OTHERS = ("hier_b", "hier_eps", "hier_fmt", "plain_eps", "plain_s")


# They compile for seconds: in float32, which shows less, one model of each family will do.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in SMALL if name not in OTHERS),
        *(slow(name, "float64") for name in OTHERS),
        ("plain_fmt", "float32"),
        ("hier_fmt", "float32"),
        *(slow(name, "float32") for name in PLAIN if name != "plain_fmt"),
        slow("hier_b", "float32"),
    ],
    indirect=["dtype"],
)
def test_training_logits_and_gradients(name, dtype):
    model, variables, case, arrays = build(name, 0.5, dtype)
    images = jnp.asarray(golden.images(name, "native", case["images"]["native"]), dtype)
    logits, loss, gradients = forward_and_gradients(model, variables, images, name)
    assert golden.relative_error(logits, arrays["logits64.train.native"]) < LOGITS[dtype]
    chex.assert_trees_all_close(loss, arrays["loss64"], rtol=LOGITS[dtype] * 10)
    check_digests(gradients, arrays, DIGESTS[dtype])
    for key, gradient in gradients.items():
        if f"g64.{key}" in arrays:
            error = golden.relative_error(gradient, arrays[f"g64.{key}"])
            assert error < GRADIENTS[dtype], key


@functools.cache  # some cases differ in their weights alone
def compiled(model):
    return jax.jit(lambda variables, images: model.apply(variables, images))


@functools.cache
def compiled_gradients(model):
    def loss(params, images, coef):
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return jnp.sum(logits * coef), logits

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def forward_and_gradients(model, variables, images, name):
    """Logits, loss sum(logits * coef), its gradients by upstream names; the image's as "input"."""
    shape = (len(images), model.num_classes)
    coef = golden.noise(f"coef/{name}", shape).astype(np.float32)
    step = compiled_gradients(model)
    (value, logits), (params, image) = step(variables["params"], images, coef)
    gradients = upstream.from_params(params)
    if name in SMALL:
        gradients["input"] = np.moveaxis(np.asarray(image), -1, 1)
    return logits, value, gradients


def check_digests(gradients, arrays, tolerance):
    """A stored digest is [sum(g * probe), norm, sum, max] of one upstream gradient."""
    for key, gradient in gradients.items():
        expected = arrays[f"gdig.{key}"]
        gradient = np.asarray(gradient, np.float64)
        actual = np.sum(gradient * golden.noise(f"probe/{key}", gradient.shape))
        assert abs(actual - expected[0]) <= tolerance * expected[1], key
        np.testing.assert_allclose(np.linalg.norm(gradient), expected[1], rtol=tolerance)


# Modules of ours whose outputs upstream has under the same names, if it has them.
BLOCK_MODULES = ("attn", "mlp")


def features_of(model, variables, images):
    """Returns what modules return by their paths, the pieces of each mixer, and the maps."""

    def run(variables, images):
        maps, state = model.apply(variables, images, method="features", capture_intermediates=True)
        captured = {
            path: value[0]
            for path, value in traverse_util.flatten_dict(state["intermediates"], sep="/").items()
        }
        modules = {path.removesuffix("/__call__"): x for path, x in captured.items()}
        params = traverse_util.flatten_dict(variables["params"], sep="/")
        mixers = {
            path.removesuffix("/projected"): path.removesuffix("projected")
            for path in captured
            if path.endswith("/projected")
        }
        pieces = {name: mixer_pieces(model, captured, params, at) for name, at in mixers.items()}
        return modules, pieces, maps

    return jax.jit(run)(variables, images)


def mixer_pieces(model, captured, params, at):
    """Returns what upstream has inside the mixer at the path `at`, under upstream's names."""
    projected, local = (captured[f"{at}{name}"] for name in ("projected", "local"))
    decays = [captured[f"{at}log_decay_{way}"] for way in ("fwd", "bwd")]
    width, heads = local.shape[-1], decays[0].shape[2]
    bias, kernel = params[f"{at}g_proj/bias"], params[f"{at}o_proj/kernel"]
    activation = "silu" if model.use_out_act else None

    def mix(gate_bias, out_kernel, activation=activation):
        return vig_mixer(
            projected,
            local,
            gate_bias,
            params[f"{at}gk_proj_up/kernel"],
            params[f"{at}gk_proj_up/bias"],
            params[f"{at}g_norm/scale"],
            params[f"{at}l_norm/scale"],
            out_kernel,
            heads=heads,
            scale=getattr(model, "merge_scale", 0.5) * (width // heads // 2) ** -0.5,
            activation=activation,
            implementation="reference",
        )

    identity, shut = jnp.eye(width, dtype=local.dtype), jnp.full_like(bias, -1e9)
    return {
        "in_proj": jnp.swapaxes(local, 1, 2),  # upstream's are channels first
        "qkv_proj": projected[..., : 2 * width],
        "log_decay": jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in decays], axis=-1),
        "local_gate": captured[f"{at}local_gate"],
        "l_norm": mix(shut, identity, None),
        "g_norm": mix(-shut, identity, None),
        "o_proj.in": mix(bias, identity),
        "o_proj": mix(bias, kernel),
    }


def gates_of(arrays):
    """Returns the golden arrays with upstream's gate logits turned into the gates."""
    arrays = dict(arrays)
    for key, logits in list(arrays.items()):
        if key.endswith(".gk_proj"):
            log_sigmoid = -np.logaddexp(0, -logits)
            arrays[f"{key.removesuffix('gk_proj')}log_decay"] = log_sigmoid / GATE_NORMALIZER
        elif key.endswith(".g_proj"):
            arrays[f"{key.removesuffix('g_proj')}local_gate"] = 1 / (1 + np.exp(-logits))
    return arrays


def check_features(ours, arrays, tolerance):
    for theirs, value in ours.items():
        expected = arrays[f"feat64.{theirs}"]
        value = np.asarray(value).reshape(expected.shape)
        assert golden.relative_error(value, expected) < tolerance, theirs


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in ("plain_t", "plain_s", "plain_fmt")),
        ("plain_fmt", "float32"),
        slow("plain_t", "float32"),
        slow("plain_s", "float32"),
    ],
    indirect=["dtype"],
)
def test_inner_features(name, dtype):
    model, variables, case, arrays = build(name, UPSTREAM_EVAL, dtype)
    images = jnp.asarray(golden.images(name, "native", case["images"]["native"])[:1], dtype)
    captured, mixers, maps = features_of(model, variables, images)
    arrays = gates_of(arrays)
    ours = {"patch_embed": captured["patch_embed"], "norm": maps[0]}
    for i in range(model.depth):
        ours[f"blocks.{i}"] = captured[f"blocks_{i}"].total()
        for path in BLOCK_MODULES:
            ours[f"blocks.{i}.{path.replace('/', '.')}"] = captured[f"blocks_{i}/{path}"]
        for piece, value in mixers[f"blocks_{i}/attn"].items():
            ours[f"blocks.{i}.attn.{piece}"] = value
    ours = {theirs: value for theirs, value in ours.items() if f"feat64.{theirs}" in arrays}
    assert len(ours) >= 13
    check_features(ours, arrays, 2 * LOGITS[dtype])


def test_inner_features_of_the_hierarchical_model():
    with jax.enable_x64(True):
        model, variables, case, arrays = build("hier_a", 0.5, "float64")
        images = jnp.asarray(golden.images("hier_a", "native", case["images"]["native"])[:1])
        images = images.astype(jnp.float64)
        captured, mixers, maps = features_of(model, variables, images)
        arrays = gates_of(arrays)

    def channels_first(x):
        return np.moveaxis(np.asarray(x), -1, 1)

    ours = {"patch_embed": channels_first(captured["patch_embed"])}
    for stage, depth in enumerate(model.depths):
        last = f"layers.{stage}.blocks.{depth - 1}"
        ours[last] = channels_first(maps[stage])
        # Upstream's "layers.<stage>" is the map after downsampling.
        after = captured[f"downsample_{stage}"] if stage < 3 else maps[3]
        ours[f"layers.{stage}"] = channels_first(after)
        attended = captured[f"stages_{stage}/blocks_{depth - 1}/attn"]
        ours[f"{last}.op"] = channels_first(attended)
    first = "layers.3.blocks.0.op"
    projections = ("qkv_proj", "local_gate", "log_decay")  # made by convolutions there
    for piece, value in mixers["stages_3/blocks_0/attn"].items():
        is_map = piece in projections
        ours[f"{first}.{piece}"] = channels_first(value) if is_map else value
    check_features(ours, arrays, LOGITS["float64"])
