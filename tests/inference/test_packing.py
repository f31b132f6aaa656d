"""Images packed in rows on the host, and their predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.testing import TOLERANCES, rms_relative_error
from vig_jax import create_model, packed_predictor, predictor
from vig_jax.errors import ConfigError
from vig_jax.inference.packing import pack

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
TINY |= {"gla_implementation": "reference"}  # compiles fastest


def photo(rows, columns, channels=3):
    """Returns an image of rows and columns of patches of 8 pixels."""
    shape = (rows * 8, columns * 8, channels)
    return np.random.default_rng(rows * columns).integers(0, 256, shape, np.uint8)


def test_images_are_packed_in_rows():
    """The largest first, each into the first row with room for its tokens and one more image."""
    images = [photo(1, 1), photo(2, 3), photo(1, 3), photo(1, 2), photo(2, 2)]
    packed = pack(images, 8, tokens=8, most_images=3, multiple=2)
    assert packed.places.tolist() == [[1, 2], [0, 0], [1, 1], [0, 1], [1, 0]]
    np.testing.assert_array_equal(
        packed.sizes, [[[2, 3], [1, 2], [0, 0]], [[2, 2], [1, 3], [1, 1]]]
    )
    np.testing.assert_array_equal(packed.patches[0, 4], images[1][8:, 8:16])
    np.testing.assert_array_equal(packed.patches[1, 7], images[0])
    assert len(pack(images, 8, tokens=8, most_images=1, multiple=4).patches) == 8


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ([photo(1, 1)[:7]], "7x8 pixels; packed sides are multiples of 8: resize it to 8x8"),
        ([photo(1, 1), photo(3, 3)], "24x24 pixels has 9 patches, a row 8 tokens: use tokens=9"),
        ([photo(1, 1), photo(1, 1, 1)], r"all must be uint8 \[height, width, 3\]"),
    ],
)
def test_images_that_cannot_be_packed(images, message):
    with pytest.raises(ValueError, match=message):
        pack(images, 8, tokens=8, most_images=2)


def test_logits_of_images_of_any_mix_of_sizes():
    model = create_model("vig_t", num_classes=3, **TINY)
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    variables = jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * generator.standard_normal(x.shape), x.dtype),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )
    predict = packed_predictor(model, variables, tokens=9, rows=2, most_images=2)
    images = [photo(1, 2), photo(3, 3), photo(2, 1), photo(1, 2), photo(1, 2)]
    logits = predict(images)
    assert logits.shape == (5, 3)
    assert logits.dtype == jnp.float32
    alone = {
        shape: predictor(model, variables, 1, shape) for shape in {x.shape[:2] for x in images}
    }
    for mine, image in zip(logits, images, strict=True):
        right = alone[image.shape[:2]](image[None])[0]
        assert rms_relative_error(mine, right) <= TOLERANCES["float32"].forward
    with pytest.raises(ValueError, match="float64"):
        predict([images[0] / 255])


def test_models_and_numbers_that_do_not_fit():
    with pytest.raises(ConfigError, match="ViGH cannot take packed images, since its stages"):
        packed_predictor(create_model("vig_h_t"), {})
    with pytest.raises(ConfigError, match="tokens=0"):
        packed_predictor(create_model("vig_t"), {}, tokens=0)
