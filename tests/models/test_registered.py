"""A family from outside of the package is a model like the others."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import vig_jax
from vig_jax.config import parse, recipes
from vig_jax.errors import ConfigError
from vig_jax.models import Backbone, FeatureInfo, register_model, variants
from vig_jax.models.from_config import model_from_config, with_image_size


class Patches(nn.Module):
    """One convolution, and a head."""

    num_classes: int = 1000
    width: int = 8
    in_chans: int = 3
    dtype: jnp.dtype | None = None
    gla_implementation: str | None = None

    native_size = None
    smallest_size = 4
    pos_embed_grid = None
    head_prefixes = ("head",)

    @property
    def stage_sizes(self):
        return ((self.width, 1),)

    @property
    def feature_info(self):
        return (FeatureInfo(self.width, 4, "conv"),)

    def layer_ids(self, params):
        return {name: jax.tree.map(lambda _: 0, tree) for name, tree in params.items()}, 0

    def setup(self):
        self.conv = nn.Conv(self.width, (4, 4), strides=4, dtype=self.dtype)
        self.head = nn.Dense(self.num_classes)

    def features(self, images, *, out_indices=None, train=False, sizes=None, padded_right=True):
        return (self.conv(images),)

    def __call__(self, images, train=False):
        pooled = self.features(images)[0].mean((1, 2))
        return self.head(pooled) if self.num_classes else pooled


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(variants, "_REGISTERED", {})
    register_model("patches_16", Patches, width=16)


def test_it_is_created_by_its_name():
    assert vig_jax.list_models("patches*") == ("patches_16",)
    model = vig_jax.create_model("patches_16", 5)
    assert isinstance(model, Backbone)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    assert model.apply(variables, jnp.zeros((2, 8, 12, 3))).shape == (2, 5)
    with pytest.raises(
        ConfigError, match="patches_16 has no setting 'widht'; did you mean 'width'"
    ):
        vig_jax.create_model("patches_16", widht=3)


def test_it_is_made_from_a_config():
    config = with_image_size(parse(recipes.imagenet("patches_16")))
    config = dataclasses.replace(config.model, num_classes=3)
    assert model_from_config(config) == Patches(3, 16, dtype=jnp.dtype("bfloat16"))
    with pytest.raises(ConfigError, match="patches_16 has no setting 'depth'"):
        model_from_config(dataclasses.replace(config, depth=2))


def test_dense_tasks_need_a_vig():
    with pytest.raises(ConfigError, match="patches_16 is a Patches; the backbone of a segmenter"):
        vig_jax.create_segmenter("patches_16", 3)
