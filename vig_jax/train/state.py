"""Everything that one update changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vig_jax.tasks.protocol import Params, Task


@flax.struct.dataclass
class TrainState:
    """The state of a run between two updates. Shapes may stand for the arrays."""

    step: Any  # int32 scalar: updates done, and the number of the next one
    params: Params
    ema_params: Params | None  # None: no averaging
    opt_state: Any
    key: Any  # constant; update n draws from fold_in(key, n)


def init_state(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema: bool
) -> TrainState:
    """The state before the first update.

    Args:
        task: gives fresh parameters.
        optimizer: gives their optimizer state.
        seed: of the initialisation and of all later draws.
        ema: whether to keep averaged parameters.
    """
    init_key, step_key = jax.random.split(jax.random.PRNGKey(seed))
    params = task.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates its inputs, and no buffer can be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=optimizer.init(params),
        key=step_key,
    )
