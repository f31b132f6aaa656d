"""Random keys of the rows of a batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray


def row_keys(key: PRNGKeyArray, rows: int) -> Array:
    """Returns one key per row: row i gets `fold_in(key, i)`, whatever the batch and the devices."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))
