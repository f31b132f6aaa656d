import jax.numpy as jnp
import jaxtyping
import pytest

from kernels_pallas import gla


@pytest.mark.parametrize(
    "arrays",
    [
        {"v": jnp.zeros((1, 5, 1, 8))},  # tokens
        {"log_decay": jnp.zeros((1, 4, 1, 8), "int32")},
        {"reverse": "yes"},
    ],
    ids=["shape", "type", "other"],
)
def test_calls_are_checked(arrays):
    x = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(arrays))):
        gla(**({"q": x, "k": x, "v": x, "log_decay": x} | arrays), implementation="xla")
