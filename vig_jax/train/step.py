"""One update, compiled over the mesh."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from vig_jax.sharding.mesh import batch_sharded, replicated
from vig_jax.tasks.protocol import Batch, Task
from vig_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    ema_decay: float,
    mesh: Mesh,
) -> TrainStep:
    """Compiles `(state, batch) -> (state, metrics)`; the given state is consumed.

    Metrics are scalars on the device: `loss`, `grad_norm` (before clipping) and `lr`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        loss, grads = jax.value_and_grad(task.loss)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "lr": schedule(state.step),
        }
        new_state = TrainState(state.step + 1, params, ema_params, opt_state, state.key)
        return new_state, metrics

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(everywhere, batch_sharded(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )
