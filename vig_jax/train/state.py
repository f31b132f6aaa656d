"""The state of a run: everything that an update changes."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vig_jax.tasks.protocol import Params, Task, Variables
from vig_jax.train.initial_values import grouped_draws


@flax.struct.dataclass
class TrainState:
    """The state of a run between two updates. Leaves may be shapes or shardings."""

    step: Any  # int32 scalar: updates done, and the number of the next one
    params: Params
    ema_params: Any  # as `params`; None: no EMA
    opt_state: Any
    key: Any  # constant; update n draws from fold_in(key, n)
    mutable: Mapping[str, Any] = flax.struct.field(default_factory=dict)  # e.g. "batch_stats"
    ema_mutable: Any = None  # as `mutable`; None: no EMA, or nothing mutable

    @property
    def variables(self) -> Variables:
        """The parameters and mutable collections, as `Module.apply` takes them."""
        return {"params": self.params, **self.mutable}

    @property
    def ema_variables(self) -> Variables | None:
        """The EMA of the variables; None if there is none."""
        if self.ema_params is None:
            return None
        return {"params": self.ema_params, **(self.ema_mutable or {})}


def init_state(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema: bool
) -> TrainState:
    """Returns the state before the first update.

    Args:
        task: gives the initial variables.
        optimizer: gives their optimizer state.
        seed: of the initialisation and of all later draws.
        ema: whether to keep an exponential moving average of the variables.
    """
    init_key, step_key = jax.random.split(jax.random.PRNGKey(seed))
    mutable = dict(grouped_draws(task.init)(init_key))
    params = mutable.pop("params")

    def copied(tree: Any) -> Any:
        # The step donates its inputs, and a buffer can be donated only once.
        return jax.tree.map(jnp.copy, tree) if ema else None

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=copied(params),
        opt_state=optimizer.init(params),
        key=step_key,
        mutable=mutable,
        ema_mutable=copied(mutable) if mutable else None,
    )
