"""All six models by name: sizes, gradients, one path for training and evaluation, remat."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import vig_jax
from tests import golden
from vig_jax.layers.block import block_class
from vig_jax.layers.norm import Residual, layer_norm, rms_norm

FOLDER = Path(__file__).parent / "golden"
PARAMETERS = {
    "vig_t": 5_834_536,
    "vig_s": 22_615_144,
    "vig_b": 89_022_184,
    "vig_h_t": 28_600_680,
    "vig_h_s": 50_051_688,
    "vig_h_b": 88_904_360,
}
PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
HIERARCHICAL = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}


def small_model(name, **changed):
    sizes = HIERARCHICAL if "_h_" in name else PLAIN
    # The scan over tokens compiles fastest.
    return vig_jax.create_model(
        name, 5, drop_path_rate=0.5, gla_implementation="reference", **(sizes | changed)
    )


# One of each kind: with the sizes replaced above, the other names are the same models.
KINDS = ("vig_t", "vig_s", "vig_h_t")
forward_kinds = ["vig_t", "vig_h_t", pytest.param("vig_s", marks=pytest.mark.slow)]
some_slow = [pytest.param(n, marks=() if n == "vig_t" else pytest.mark.slow) for n in KINDS]


def inputs(model):
    """Returns variables and images."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.standard_normal((4, 64, 32, 3)), jnp.float32)
    # Cheaper than initialising, and no parameter is at an initial 0 or 1.
    variables = jax.tree.map(
        lambda x: (x.ndim == 1) + 0.2 * generator.standard_normal(x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )
    return variables, images


@functools.cache
def forward(model):
    """Returns logits of one compiled function."""
    variables, images = inputs(model)

    def everything(variables):
        still = model.clone(drop_path_rate=0.0)
        return {
            "evaluated": model.apply(variables, images),
            "trained": still.apply(variables, images, train=True),
            "bfloat16": model.clone(dtype=jnp.bfloat16).apply(variables, images),
        }

    return jax.jit(everything)(variables)


@functools.cache
def gradients_of(model):
    """Returns the value and the gradients of a sum of logits, in float64, to see any difference."""
    variables, images = inputs(model)
    with jax.enable_x64(True):
        wide, images = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (variables, images))

        def loss(variables):
            rngs = {"dropout": jax.random.key(2)}
            return jnp.sum(model.apply(variables, images, train=True, rngs=rngs)[:, 0])

        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(wide))


def test_list_models():
    assert vig_jax.list_models() == tuple(PARAMETERS)
    assert vig_jax.list_models("vig_h_*") == ("vig_h_t", "vig_h_s", "vig_h_b")
    assert vig_jax.list_models("*_b") == ("vig_b", "vig_h_b")


def test_modules_hold_no_weights():
    with pytest.raises(ValueError, match=r"both with vig_jax\.from_pretrained"):
        vig_jax.create_model("vig_t", pretrained="vig_t.pth")


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_parameter_counts_and_drop_path_rates(name):
    rates = []

    def read_rates(module, images):
        logits = module(images)
        for stage in module.stages if "_h_" in name else [module]:
            rates.extend(block.drop_path for block in stage.blocks)
        return logits

    model = vig_jax.create_model(name, gla_implementation="reference")
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    init = functools.partial(model.init_with_output, method=read_rates)
    logits, variables = jax.eval_shape(init, jax.random.key(0), images)
    chex.assert_shape(logits, (2, 1000))
    case, _ = golden.load(FOLDER, name)
    np.testing.assert_allclose(rates, case["drop_path"], rtol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(variables)) == PARAMETERS[name]
    features = functools.partial(model.apply, method="features")
    # The others have the same code.
    for height, width in {"vig_t": ((384, 384), (96, 160)), "vig_h_t": ((96, 160),)}.get(name, ()):
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        maps = jax.eval_shape(features, variables, images)
        assert [x.shape for x in maps] == [
            (2, height // info.reduction, width // info.reduction, info.num_chs)
            for info in model.feature_info
        ]


@pytest.mark.parametrize("name", some_slow)
def test_every_parameter_gets_a_gradient(name):
    _, gradients = gradients_of(small_model(name))
    for path, gradient in traverse_util.flatten_dict(gradients, sep="/").items():
        assert np.max(np.abs(gradient)) > 0, path


@pytest.mark.parametrize("name", forward_kinds)
def test_training_path_is_the_evaluation_path_without_drop_path(name):
    seen = forward(small_model(name))
    chex.assert_trees_all_close(seen["trained"], seen["evaluated"], rtol=1e-5)


@pytest.mark.parametrize("name", forward_kinds)
def test_bfloat16_follows_float32(name):
    seen = forward(small_model(name))
    assert seen["bfloat16"].dtype == jnp.float32
    error = jnp.linalg.norm(seen["bfloat16"] - seen["evaluated"])
    assert float(error / jnp.linalg.norm(seen["evaluated"])) < 3e-2


@pytest.mark.parametrize("name", some_slow)
def test_remat_changes_neither_values_nor_gradients(name):
    model = small_model(name)
    value, gradients = gradients_of(model)
    value_remat, gradients_remat = gradients_of(model.clone(remat=True))
    np.testing.assert_allclose(value_remat, value, rtol=1e-12)
    chex.assert_trees_all_close(gradients_remat, gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_remat_does_not_change_the_parameters(name):
    model, images = small_model(name), jnp.zeros((1, 32, 32, 3))
    trees = [
        jax.eval_shape(m.init, jax.random.key(0), images) for m in (model, model.clone(remat=True))
    ]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_remat_keeps_two_maps_of_a_block_for_the_backward_pass(norm):
    def kept(remat, batch):
        """Elements that the backward pass takes from the forward pass."""
        sizes = {"features": 8, "num_heads": 2, "mlp_hidden": 32, "drop_path": 0.0}
        block = block_class(remat)(**sizes, norm=functools.partial(norm, jnp.float32))
        x = jnp.zeros((batch, 4, 4, 8))
        stream = Residual(x, x)
        variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False), stream)

        def backward(variables, stream):
            return jax.vjp(lambda *x: block.apply(*x, False), variables, stream)[1]

        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(backward, variables, stream)))

    # Of one more image, so that parameters drop out.
    with_remat, without = (kept(remat, 2) - kept(remat, 1) for remat in (True, False))
    assert with_remat == 2 * 4 * 4 * 8  # the stream and a branch still to be added
    assert without > 20 * 4 * 4 * 8


@pytest.mark.parametrize(("name", "blocks"), [("vig_t", 2), ("vig_h_t", 4)])
def test_remat_of_a_model_is_that_of_every_block(name, blocks):
    model = small_model(name, remat=True)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    equations = jax.make_jaxpr(model.apply)(variables, images).eqns
    assert sum("remat" in x.primitive.name for x in equations) == blocks  # jax.checkpoint


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("vig_ss", None, "did you mean 'vig_s'"),
        ("vigh_b", None, "did you mean 'vig_h_b'"),
        ("resnet", None, "known: vig_t, vig_s, vig_b, vig_h_t, vig_h_s, vig_h_b"),
        ("vig_t", {"imgsize": 32}, "did you mean 'img_size'"),
        ("vig_t", {"depths": (1, 1, 1, 1)}, "vig_t has no setting 'depths'; did you mean 'depth'"),
        ("vig_h_t", {"embed_dim": 32}, "did you mean 'embed_dims'"),
        ("vig_h_t", {"img_size": 384}, "vig_h_t has no setting 'img_size'; known: "),
        ("vig_t", {"num_heads": 5}, "multiple of 2 \\* num_heads"),
        ("vig_t", {"patch_size": 5}, "must be even"),
        ("vig_h_t", {"num_heads": (3, 6, 12, 25)}, "embed_dim=768 must be a multiple of 2"),
        ("vig_h_t", {"depths": (2, 2, 5)}, r"depths=\(2, 2, 5\) must be four positive"),
        ("vig_h_t", {"embed_dims": 96}, "embed_dims=96 must be four positive"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(name, setting, message):
    with pytest.raises(ValueError, match=message):
        vig_jax.create_model(name, **(setting or {}))


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("vig_t", {}),
        ("vig_t", {"dtype": jnp.bfloat16}),
        ("vig_t", {"param_dtype": jnp.bfloat16}),
        ("vig_h_t", {"dtype": jnp.bfloat16}),
    ],
)
def test_strict_dtype_promotion(name, dtypes):
    sizes = HIERARCHICAL if "_h_" in name else PLAIN
    model = vig_jax.create_model(name, 5, drop_path_rate=0.5, **sizes, **dtypes)
    side = model.smallest_size
    images = jax.ShapeDtypeStruct((2, side, side, 3), dtypes.get("param_dtype", jnp.float32))

    def gradient(images):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = model.init(keys, images)

        def loss(variables):
            return jnp.sum(model.apply(variables, images, train=True, rngs=keys))

        return variables, jax.grad(loss)(variables)

    with jax.numpy_dtype_promotion("strict"):
        variables, gradients = jax.eval_shape(gradient, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, gradients)


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_an_empty_batch_has_empty_results(name):
    model = small_model(name)
    side = model.smallest_size

    def results(images):
        variables = model.init(jax.random.key(0), images)
        return model.apply(variables, images[:0]), model.apply(
            variables, images[:0], method="features"
        )

    logits, maps = jax.eval_shape(results, jnp.zeros((1, side, side, 3)))
    assert logits.shape == (0, model.num_classes)
    assert maps[0].shape[::3] == (0, model.feature_info[0].num_chs)
