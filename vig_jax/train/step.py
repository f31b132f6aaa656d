"""One update, compiled over the mesh as programs for inputs, gradients and the new state."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vig_jax.errors import ConfigError
from vig_jax.sharding.kernels import gradients_summed_in
from vig_jax.sharding.mesh import (
    batch_devices,
    batch_sharded,
    check_axes,
    parts_sharded,
    replicated,
)
from vig_jax.sharding.rules import gathered
from vig_jax.sharding.xla_options import overlap_options
from vig_jax.tasks.protocol import Aux, Batch, Params, Task, preparing
from vig_jax.train.optim.freeze import frozen_mask
from vig_jax.train.optim.optimizer import global_norm
from vig_jax.train.programs import Programs
from vig_jax.train.state import TrainState

PREPARE_INPUTS = "prepare_inputs"
"""The name of the program from a batch to what the model takes, `(key, step, batch) -> inputs`."""

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
Mutable = Mapping[str, Any]
Loss = Callable[[Mapping[str, Any], Any, jax.Array], tuple[jax.Array, Aux]]
Gradient = Callable[[Params, Mutable, Any, jax.Array], tuple[tuple[jax.Array, Aux], Params]]
Computed = tuple[dict[str, jax.Array], Mutable, Params]  # metrics, new mutable, gradients


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
    split: TrainState | None = None,
    reduce_dtype: str = "float32",
) -> Programs:
    """Returns the jitted `(state, batch) -> (state, metrics)`; the given state is consumed.

    It is a sequence of programs, which are compiled side by side: the inputs, if the task prepares
    them and the batch is not computed in parts; the gradients; and the update of the state.

    Metrics are scalars on the device: `loss`, `grad_norm` (before clipping, of the trained
    parameters), `lr` (of the head, if layers have different rates), and those of the task.

    Args:
        task: gives the loss, a mean over examples.
        optimizer: from `make_optimizer`.
        schedule: for the metrics.
        ema_decay: of the EMA of the variables.
        mesh: the batch is split over its axes `data` and `fsdp`.
        accumulation_steps: number of equal parts of the batch whose gradients are computed in
            sequence and averaged. Mixing and other draws are made per part. Without draws and
            batch statistics, the update is that of the whole batch.
        freeze: parameters that are not trained; see `vig_jax.train.optim.freeze`.
        head_prefixes: first names of the parameter paths that are the head, for "backbone".
        split: the shardings of the state, from `vig_jax.sharding.rules`; None: every device has
            all of it.
        reduce_dtype: in which weights' gradients are summed over devices; see
            `vig_jax.sharding.kernels.gradients_summed_in`.

    Raises:
        ConfigError: the mesh has axes that a run cannot use.
    """
    check_axes(mesh)
    in_parts = accumulation_steps > 1
    prepares = None if in_parts else preparing(task)
    loss = prepares.loss_of_inputs if prepares else task.loss
    compute = _gradient(loss, freeze, head_prefixes, split.params if split else None)
    if in_parts:
        compute = _accumulated(compute, accumulation_steps, mesh)

    def gradients(
        params: Params, mutable: Mutable, key: jax.Array, step: jax.Array, given: Any
    ) -> Computed:
        with gradients_summed_in(reduce_dtype):
            (loss, aux), grads = compute(params, mutable, given, jax.random.fold_in(key, step))
        return {**aux.metrics, "loss": loss}, aux.mutable, grads

    def averaged(old: Any, new: Any) -> Any:
        return optax.incremental_update(new, old, 1.0 - ema_decay)

    def update_state(
        state: TrainState, computed: Computed
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics, mutable, grads = computed
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to the power of integers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params, ema_mutable = state.ema_params, state.ema_mutable
        if ema_params is not None:
            # Frozen parameters keep their EMA: recomputing it would round it.
            ema_params = jax.tree.map(
                lambda old, new, frozen: old if frozen else new,
                ema_params,
                averaged(ema_params, params),
                frozen_mask(freeze, params, head_prefixes),
            )
        if ema_mutable is not None:
            ema_mutable = averaged(ema_mutable, mutable)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            key=state.key,
            mutable=mutable,
            ema_mutable=ema_mutable,
        )
        return new_state, metrics | {"grad_norm": global_norm(grads), "lr": schedule(state.step)}

    def train_step(
        programs: Mapping[str, Any], state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        given = batch
        if PREPARE_INPUTS in programs:
            given = programs[PREPARE_INPUTS](state.key, state.step, batch)
        computed = programs["gradients"](state.params, state.mutable, state.key, state.step, given)
        return programs["update_state"](state, computed)

    everywhere, rows = replicated(mesh), batch_sharded(mesh)
    of_state = everywhere if split is None else split
    of_params, of_mutable = (
        (everywhere, everywhere) if split is None else (split.params, split.mutable)
    )
    of_computed = everywhere, of_mutable, of_params
    jit = functools.partial(jax.jit, compiler_options=overlap_options(mesh))
    programs = {
        "gradients": jit(
            gradients,
            in_shardings=(of_params, of_mutable, everywhere, everywhere, rows),
            out_shardings=of_computed,
        ),
        "update_state": jit(
            update_state,
            in_shardings=(of_state, of_computed),
            out_shardings=(of_state, everywhere),
            donate_argnums=0,
        ),
    }
    if prepares:

        def prepare_inputs(key: jax.Array, step: jax.Array, batch: Batch) -> Any:
            return prepares.training_inputs(batch, jax.random.fold_in(key, step))

        shardings = (everywhere, everywhere, rows)
        first = jit(prepare_inputs, in_shardings=shardings, out_shardings=rows)
        programs = {PREPARE_INPUTS: first, **programs}
    return Programs(programs, train_step)


def _gradient(loss: Loss, freeze: str, head_prefixes: Sequence[str], split: Any) -> Gradient:
    """Returns the function of loss, task metrics and mutable collections, and gradient.

    Args:
        loss: of variables, a batch or the inputs made from it, and a key.
        freeze: parameters without a gradient.
        head_prefixes: see `make_train_step`.
        split: shardings of the parameters and gradients; None: every device has all of them.
    """

    def loss_of(
        params: Params, mutable: Mutable, given: Any, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        # Stops the backward pass below the lowest trained layer.
        frozen = frozen_mask(freeze, params, head_prefixes)
        params = jax.tree.map(lambda x, f: jax.lax.stop_gradient(x) if f else x, params, frozen)
        if split is not None:
            params = gathered(params, split)
        value, aux = loss({"params": params, **mutable}, given, key)
        return value, Aux(dict(aux.metrics), {**mutable, **aux.mutable})

    return jax.value_and_grad(loss_of, has_aux=True)


def _accumulated(gradient: Gradient, steps: int, mesh: Mesh) -> Gradient:
    """Returns `gradient` as means over equal parts of the batch, computed in sequence."""

    def accumulated(
        params: Params, mutable: Mutable, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, Aux], Params]:
        part_of = parts_sharded(mesh)
        parts = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x.reshape(steps, -1, *x.shape[1:]), part_of),
            dict(batch),
        )

        def add(
            carry: tuple[Params, Mutable], number_and_part: tuple[jax.Array, Batch]
        ) -> tuple[tuple[Params, Mutable], tuple[jax.Array, Mapping[str, jax.Array]]]:
            (total, mutable), (number, part) = carry, number_and_part
            part_key = jax.random.fold_in(key, number)
            (loss, aux), grads = gradient(params, mutable, part, part_key)
            return (jax.tree.map(jnp.add, total, grads), aux.mutable), (loss, aux.metrics)

        start: tuple[Params, Mutable] = jax.tree.map(jnp.zeros_like, params), dict(mutable)
        (total, mutable), (losses, metrics) = jax.lax.scan(add, start, (jnp.arange(steps), parts))
        grads = jax.tree.map(lambda x: x / steps, total)
        return (jnp.mean(losses), Aux(jax.tree.map(jnp.mean, metrics), mutable)), grads

    return accumulated


def check_accumulation(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Refuses parts that are not equal or that the devices cannot share equally.

    Raises:
        ConfigError: `batch_size` is not a multiple of parts times devices.
    """
    if accumulation_steps < 1:
        raise ConfigError(
            f"config.train.accumulation_steps={accumulation_steps} must be at least 1"
        )
    parts = accumulation_steps * batch_devices(mesh)
    if batch_size % parts:
        raise ConfigError(
            f"a batch of {batch_size} cannot be computed in {accumulation_steps} parts on "
            f"{batch_devices(mesh)} devices: set config.train.batch_size to a multiple of {parts}, "
            "or change config.train.accumulation_steps"
        )
