"""One update, compiled over the mesh."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vig_jax.errors import ConfigError
from vig_jax.sharding.mesh import batch_sharded, parts_sharded, replicated
from vig_jax.tasks.protocol import Batch, Params, Task
from vig_jax.train.optim.freeze import frozen_mask
from vig_jax.train.optim.optimizer import global_norm
from vig_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    ema_decay: float,
    mesh: Mesh,
    accumulation_steps: int = 1,
    freeze: str = "",
    head_prefixes: Sequence[str] = (),
) -> TrainStep:
    """Compiles `(state, batch) -> (state, metrics)`; the given state is consumed.

    Metrics are scalars on the device: `loss`, `grad_norm` (before clipping; of what is trained)
    and `lr` (of the head, where layers differ).

    Args:
        task: gives the loss, a mean over examples.
        optimizer: from `make_optimizer`.
        schedule: for the metrics.
        ema_decay: of the averaged parameters.
        mesh: that the batch is split over.
        accumulation_steps: equal parts of the batch whose gradients are computed one after another
            and averaged. Mixing and other draws are made per part; without them the update is that
            of the whole batch.
        freeze: the parameters that are not trained; see `vig_jax.train.optim.freeze`.
        head_prefixes: first names of the parameter paths that are the head, for "backbone".
    """

    def loss_of(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        # Where no gradient is wanted, none is computed: the backward pass ends above.
        frozen = frozen_mask(freeze, params, head_prefixes)
        params = jax.tree.map(lambda x, f: jax.lax.stop_gradient(x) if f else x, params, frozen)
        return task.loss(params, batch, key)

    def accumulated(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Params]:
        """Loss and gradient, the means over the parts."""
        part_of = parts_sharded(mesh)
        parts = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(
                x.reshape(accumulation_steps, -1, *x.shape[1:]), part_of
            ),
            dict(batch),
        )

        def add(
            total: Params, number_and_part: tuple[jax.Array, Batch]
        ) -> tuple[Params, jax.Array]:
            number, part = number_and_part
            part_key = jax.random.fold_in(key, number)
            loss, grads = jax.value_and_grad(loss_of)(params, part, part_key)
            return jax.tree.map(jnp.add, total, grads), loss

        numbers = jnp.arange(accumulation_steps)
        total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (numbers, parts))
        return jnp.mean(losses), jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient = jax.value_and_grad(loss_of) if accumulation_steps == 1 else accumulated
        loss, grads = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            averages = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
            # The average of what stays is what it was; computed anew it would be rounded.
            frozen = frozen_mask(freeze, params, head_prefixes)
            ema_params = jax.tree.map(
                lambda old, new, f: old if f else new, ema_params, averages, frozen
            )
        metrics = {
            "loss": loss,
            "grad_norm": global_norm(grads),
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


def check_accumulation(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Refuses parts that are not equal or that the devices cannot share equally.

    Raises:
        ConfigError: `batch_size` is not a multiple of parts times devices.
    """
    if accumulation_steps < 1:
        raise ConfigError(
            f"config.train.accumulation_steps={accumulation_steps}; at least 1 is wanted"
        )
    parts = accumulation_steps * mesh.size
    if batch_size % parts:
        raise ConfigError(
            f"a batch of {batch_size} cannot be computed in {accumulation_steps} parts on "
            f"{mesh.size} devices: set config.train.batch_size to a multiple of {parts}, or "
            "config.train.accumulation_steps to another number"
        )
