"""The configuration of published weights."""

from vig_jax.tasks.registry import make_task
from vig_jax.weights.published import published_config


def test_published_weights_are_evaluated_with_the_recipe():
    config = published_config("vig_t", image_size=320)
    assert (config.data.image_size, config.data.crop_pct) == (320, 0.875)
    assert (config.model.dtype, config.model.merge_scale) == ("float32", 0.25)
    assert published_config("vig_h_t").model.merge_scale is None


def test_images_of_another_size_keep_the_position_embedding_of_the_file():
    config = published_config("vig_t", image_size=320)
    task = make_task(config, {"class_names": ("cat", "dog")})
    assert task.config.model.img_size == config.model.img_size == 224
    assert task.evaluation.batch_spec["image"].shape == (320, 320, 3)
