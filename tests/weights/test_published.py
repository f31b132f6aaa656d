"""The configuration of published weights."""

from vig_jax.weights.published import published_config


def test_published_weights_are_evaluated_with_the_recipe():
    config = published_config("vig_t", image_size=320)
    assert (config.data.image_size, config.data.crop_pct) == (320, 0.875)
    assert (config.model.dtype, config.model.merge_scale) == ("float32", 0.25)
    assert published_config("vig_h_t").model.merge_scale is None
