"""A config made into the parts that the loop moves."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vig_jax.config import RunConfig
from vig_jax.data import (
    BatchIterator,
    DataSetError,
    Source,
    eval_batches,
    open_source,
    steps_per_epoch,
    train_batches,
)
from vig_jax.evaluation.accuracy import EvalStep, make_eval_step
from vig_jax.sharding.mesh import check_batch_size, make_mesh, replicated
from vig_jax.tasks.classification import make_task
from vig_jax.tasks.protocol import Params, Task
from vig_jax.train.calendar import Calendar
from vig_jax.train.checkpoint import RunInfo
from vig_jax.train.optimizer import make_optimizer
from vig_jax.train.schedule import warmup_cosine
from vig_jax.train.state import TrainState, init_state
from vig_jax.train.step import TrainStep, make_train_step


class SettingError(ValueError):
    """A setting that cannot work, as only data set, model or devices can tell."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, task and compiled functions of one run."""

    config: RunConfig  # resolved: nothing is left to the data set
    train_source: Source
    eval_source: Source
    info: RunInfo
    mesh: Mesh
    calendar: Calendar
    task: Task
    new_state: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep

    @classmethod
    def of(cls, config: RunConfig) -> "Experiment":
        """Opens the data and builds everything; nothing is compiled or run yet.

        Raises:
            DataSetError: the data set is not there or not as it should be.
            SettingError: a setting that cannot work.
        """
        try:
            return cls._of(config)
        except DataSetError:
            raise
        except ValueError as error:
            raise SettingError(str(error)) from error

    @classmethod
    def _of(cls, config: RunConfig) -> "Experiment":
        train_source = open_source(config.data, "train")
        eval_source = open_source(config.data, "eval")
        config = _resolve(config, train_source)
        mesh = make_mesh()
        check_batch_size(config.train.batch_size, mesh)
        epoch = steps_per_epoch(train_source, config.train.batch_size)
        task = make_task(config)
        schedule = warmup_cosine(
            config.optimizer,
            batch_size=config.train.batch_size,
            steps_per_epoch=epoch,
            epochs=config.train.epochs,
        )
        optimizer = make_optimizer(config.optimizer, schedule)
        ema_decay = config.train.ema_decay
        return cls(
            config=config,
            train_source=train_source,
            eval_source=eval_source,
            info=RunInfo(config, tuple(train_source.class_names), train_source.fingerprint()),
            mesh=mesh,
            calendar=Calendar.of(config.train, epoch),
            task=task,
            new_state=jax.jit(
                lambda: init_state(task, optimizer, seed=config.seed, ema=ema_decay > 0),
                out_shardings=replicated(mesh),
                # Runs once: to optimise it would cost more than it could save.
                compiler_options={"xla_backend_optimization_level": 0},
            ),
            train_step=make_train_step(task, optimizer, schedule, ema_decay=ema_decay, mesh=mesh),
            eval_step=make_eval_step(task, mesh=mesh),
        )

    def state_from(self, params: Params) -> TrainState:
        """The state before the first update, with these parameters, averages included."""
        state = self.new_state()
        # Arrays of their own, as a step donates its inputs.
        copy = jax.jit(
            lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=replicated(self.mesh)
        )
        averages = None if state.ema_params is None else copy(params)
        return dataclasses.replace(state, params=copy(params), ema_params=averages)

    def train_batches(self, start_step: int) -> BatchIterator:
        """This process's rows of the batches from `start_step` on, without end."""
        return train_batches(
            self.train_source,
            self.config.data,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def eval_batches(self) -> BatchIterator:
        """This process's rows of one pass over the evaluation images."""
        return eval_batches(
            self.eval_source,
            self.config.data,
            batch_size=self.config.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def _resolve(config: RunConfig, source: Source) -> RunConfig:
    """Fills in what the config leaves to the data set, and checks what it does not."""
    classes = config.model.num_classes
    if classes is None:
        classes = source.num_classes
    if classes < source.num_classes:
        raise ValueError(
            f"config.model.num_classes is {classes}, but the data set has "
            f"{source.num_classes} classes: unset it, or set it to at least that"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))
