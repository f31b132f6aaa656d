"""Builds the data, the task and the compiled functions of a run from its config."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from vig_jax.config import RunConfig
from vig_jax.data import (
    Batch,
    BatchIterator,
    Dataset,
    eval_batches,
    open_dataset,
    steps_per_epoch,
    train_batches,
)
from vig_jax.data.preprocess.protocol import examples_per_row
from vig_jax.errors import ConfigError
from vig_jax.evaluation.evaluate import make_predict_step
from vig_jax.models import ParameterGroups
from vig_jax.models.backbone import implementation_refusals
from vig_jax.sharding.mesh import check_batch_size, check_rows, make_mesh
from vig_jax.sharding.rules import shardings
from vig_jax.tasks.protocol import PredictStep, Variables
from vig_jax.tasks.registry import TaskBundle, get_task, make_task
from vig_jax.train.checkpoint import RunInfo
from vig_jax.train.compile_ahead import batch_of, compiled_ahead
from vig_jax.train.intervals import Intervals
from vig_jax.train.logging.first_batch import PreviewStep, make_preview_step
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.optim.schedule import make_schedule
from vig_jax.train.programs import Programs
from vig_jax.train.state import TrainState, init_state
from vig_jax.train.step import PREPARE_INPUTS, TrainStep, check_accumulation, make_train_step
from vig_jax.weights.run_folder import with_sharding

CACHED_BYTES = 2**28
"""The most bytes of evaluation batches that a process keeps in memory."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The data, task and compiled functions of one run.

    Attributes:
        config: resolved: nothing is left for the data set to decide.
        split: the shardings of the state over the mesh.
        bundle: the task, its evaluation and its preprocessing.
    """

    config: RunConfig
    train_data: Dataset
    eval_data: Dataset
    info: RunInfo
    mesh: Mesh
    split: TrainState
    intervals: Intervals
    bundle: TaskBundle
    new_state: Callable[[], TrainState]
    train_step: TrainStep
    predict: PredictStep
    preview: PreviewStep | None
    cached_eval_batches: list[Batch] = dataclasses.field(default_factory=list)

    @classmethod
    def from_config(cls, config: RunConfig) -> "Experiment":
        """Opens the data and builds everything; nothing is compiled or run yet.

        Raises:
            DataSetError: the data set is missing or malformed.
            ConfigError: a setting that cannot work.
        """
        train_data = open_dataset(config.data, "train")
        eval_data = open_dataset(config.data, "eval")
        _check_fine_tuning(config)
        trained_on = train_data.info.metadata
        mesh = make_mesh(shape=config.mesh)
        batch_size, parts = config.train.batch_size, config.train.accumulation_steps
        check_batch_size(batch_size, mesh)
        check_accumulation(batch_size, parts, mesh)
        bundle = make_task(config, trained_on)
        check_rows(batch_size, examples_per_row(bundle.train_preprocess), mesh, parts)
        epoch = steps_per_epoch(train_data, batch_size, bundle.train_preprocess)
        intervals = Intervals.from_config(config.train, epoch)
        config = bundle.config
        eval_data = get_task(config.task.name).match_data(trained_on, eval_data, config, None)
        bundle = bundle.evaluated_on(eval_data)
        schedule = make_schedule(
            config.optimizer, batch_size=batch_size, steps_per_epoch=epoch, total=intervals.total
        )
        model = bundle.task.model
        groups = model if isinstance(model, ParameterGroups) else None
        optimizer = make_optimizer(config.optimizer, schedule, groups)
        ema_decay = config.train.ema_decay

        @jax.jit
        def initial() -> TrainState:
            return init_state(bundle.task, optimizer, seed=config.seed, ema=ema_decay > 0)

        # Raises the model's errors now, before the run begins. JAX keeps the trace for later.
        with jax.set_mesh(mesh), implementation_refusals(config.model.gla_implementation):
            split: TrainState = shardings(jax.eval_shape(initial), mesh)
            new_state = jax.jit(
                initial,
                out_shardings=split,
                # It runs once: optimising it would take longer than it could save.
                compiler_options={"xla_backend_optimization_level": 0},
            )
            if config.model.gla_implementation:  # it may not serve this device
                new_state.lower()
        train_step = make_train_step(
            bundle.task,
            optimizer,
            schedule,
            ema_decay=ema_decay,
            mesh=mesh,
            accumulation_steps=parts,
            freeze=config.optimizer.freeze,
            head_prefixes=groups.head_prefixes if groups else (),
            split=split,
            reduce_dtype=config.train.reduce_dtype,
        )
        preview = None
        if bundle.preview:
            preview = make_preview_step(
                bundle.preview, mesh=mesh, accumulation_steps=parts, train_step=train_step
            )
        return cls(
            config=config,
            train_data=train_data,
            eval_data=eval_data,
            info=RunInfo(
                config=config,
                metadata=trained_on,
                data_fingerprint=train_data.info.fingerprint,
                eval_fingerprint=eval_data.info.fingerprint,
                primary_metric=bundle.evaluation.primary_metric,
            ),
            mesh=mesh,
            split=split,
            intervals=intervals,
            bundle=bundle,
            new_state=new_state,
            train_step=train_step,
            predict=make_predict_step(bundle.evaluation, mesh=mesh),
            preview=preview,
        )

    def compiled_ahead(self, state: TrainState, threads: Executor, *, begins: bool) -> "Experiment":
        """Returns the experiment with functions whose programs are being compiled side by side.

        Args:
            state: its types.
            threads: one is used for each program.
            begins: whether nothing was restored: the first state and the preview are needed, too.
        """
        rows = self.config.train.batch_size // examples_per_row(self.bundle.train_preprocess)
        task, evaluation = self.bundle.task, self.bundle.evaluation
        batch = batch_of(task.batch_spec, rows)
        variables = with_sharding(state.variables, self.split.variables)
        programs: dict[str, Any] = {}
        if begins:
            programs["new_state"] = compiled_ahead(self.new_state, (), threads)
        step = compiled_ahead(self.train_step, (state, batch), threads)
        programs["train_step"] = step
        if begins and isinstance(self.preview, Programs) and isinstance(step, Programs):
            shared = {**self.preview.programs, PREPARE_INPUTS: step.programs[PREPARE_INPUTS]}
            programs["preview"] = dataclasses.replace(self.preview, programs=shared)
        elif begins and self.preview:
            arguments: tuple[Any, ...] = (batch, state.key)
            programs["preview"] = compiled_ahead(self.preview, arguments, threads, self.mesh)
        arguments = variables, batch_of(evaluation.batch_spec, rows)
        programs["predict"] = compiled_ahead(self.predict, arguments, threads, self.mesh)
        return dataclasses.replace(self, **programs)

    def initial_variables(self) -> tuple[Variables, str]:
        """Reads the weights that `config.init_weights` names; see `TaskEntry`."""
        read = get_task(self.config.task.name).initial_variables
        return read(self.config, self.bundle.task.model, self.info.metadata)

    def state_from(self, variables: Variables) -> TrainState:
        """Returns the state before the first update, with these variables, EMA included.

        Args:
            variables: nested dictionaries; what is left out keeps its random initialisation.
        """
        state = self.new_state()
        given = traverse_util.flatten_dict(dict(variables))
        fresh = traverse_util.flatten_dict(dict(state.variables))
        assert given.keys() <= fresh.keys()
        merged = traverse_util.unflatten_dict(fresh | given)
        # Copies, because a step donates its inputs.
        split = self.split.variables
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=split)
        both: dict[str, Any] = copy(merged)
        ema: dict[str, Any] = {} if state.ema_params is None else copy(merged)
        return dataclasses.replace(
            state,
            params=both.pop("params"),
            ema_params=ema.pop("params", None),
            mutable=both,
            ema_mutable=ema or None,
        )

    def train_batches(self, start_step: int) -> BatchIterator:
        """Returns this process's rows of the batches from `start_step` on, without end."""
        return train_batches(
            self.train_data,
            self.bundle.train_preprocess,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **self._loading(),
        )

    @contextlib.contextmanager
    def eval_batches(self) -> Iterator[Iterator[Batch]]:
        """Yields this process's rows of one pass over the evaluation data.

        A small set is kept in memory for later passes: starting workers for it again would take
        longer than the evaluation.
        """
        if self.cached_eval_batches:
            yield iter(self.cached_eval_batches)
            return
        with eval_batches(
            self.eval_data,
            self.bundle.eval_preprocess,
            batch_size=self.config.train.batch_size,
            **self._loading(),
        ) as batches:
            fits = batches.total_bytes <= CACHED_BYTES
            yield self._caching(batches) if fits else batches

    def _loading(self) -> dict[str, Any]:
        """Returns the settings of the loader for this process."""
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "workers": self.config.data.workers,
            "prefetch": self.config.data.prefetch,
            "image_seconds": self.config.data.image_seconds,
        }

    def _caching(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches, and keeps them when the pass is complete."""
        seen = []
        for batch in batches:
            seen.append(batch)
            yield batch
        self.cached_eval_batches.extend(seen)


def _check_fine_tuning(config: RunConfig) -> None:
    """Refuses settings for trained parameters in a run that starts from random ones."""
    optimizer = config.optimizer
    if config.init_weights is None and (optimizer.freeze or optimizer.layer_decay != 1):
        raise ConfigError(
            "config.init_weights is not set, but config.optimizer.freeze or .layer_decay is: they "
            "are for parameters that are already trained. Name a .pth or .safetensors file or a "
            "run: --config.init_weights=FILE"
        )
