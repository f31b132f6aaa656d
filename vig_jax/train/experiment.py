"""A config made into the parts that the loop moves."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vig_jax.augment.mixup import Mix, draw
from vig_jax.config import DataConfig, RunConfig
from vig_jax.data import (
    Batch,
    BatchIterator,
    Dataset,
    Preprocess,
    eval_batches,
    open_dataset,
    steps_per_epoch,
    train_batches,
)
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.protocol import bytes_per_example
from vig_jax.errors import ConfigError
from vig_jax.evaluation.accuracy import EvalStep, make_eval_step
from vig_jax.models import ParameterGroups, create_model
from vig_jax.models.backbone import implementation_refusals
from vig_jax.sharding.mesh import check_batch_size, make_mesh, replicated
from vig_jax.tasks.classification import make_task
from vig_jax.tasks.protocol import Params, Task
from vig_jax.train.calendar import Calendar
from vig_jax.train.checkpoint import RunInfo
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.optim.schedule import warmup_cosine
from vig_jax.train.state import TrainState, init_state
from vig_jax.train.step import TrainStep, check_accumulation, make_train_step

_KEPT_BYTES = 2**28  # of decoded evaluation images, in this process


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, task and compiled functions of one run."""

    config: RunConfig  # resolved: nothing is left to the data set
    train_source: Dataset
    eval_source: Dataset
    train_preprocess: Preprocess
    eval_preprocess: Preprocess
    info: RunInfo
    mesh: Mesh
    calendar: Calendar
    task: Task
    new_state: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep
    decoded: list[Batch] = dataclasses.field(default_factory=list)  # if they are few, see below

    @classmethod
    def of(cls, config: RunConfig) -> "Experiment":
        """Opens the data and builds everything; nothing is compiled or run yet.

        Raises:
            DataSetError: the data set is not there or not as it should be.
            ConfigError: a setting that cannot work.
        """
        return cls._of(config)

    @classmethod
    def _of(cls, config: RunConfig) -> "Experiment":
        train_source = open_dataset(config.data, "train")
        eval_source = open_dataset(config.data, "eval")
        config = _resolve(config, train_source)
        mesh = make_mesh()
        batch_size, parts = config.train.batch_size, config.train.accumulation_steps
        check_batch_size(batch_size, mesh)
        check_accumulation(batch_size, parts, mesh)
        epoch = steps_per_epoch(train_source, batch_size)
        calendar = Calendar.of(config.train, epoch)
        task = make_task(config)
        groups = task.model if isinstance(task.model, ParameterGroups) else None
        schedule = warmup_cosine(
            config.optimizer, batch_size=batch_size, steps_per_epoch=epoch, total=calendar.total
        )
        optimizer = make_optimizer(config.optimizer, schedule, groups)
        freeze, ema_decay = config.optimizer.freeze, config.train.ema_decay
        new_state = jax.jit(
            lambda: init_state(task, optimizer, seed=config.seed, ema=ema_decay > 0),
            out_shardings=replicated(mesh),
            # Runs once: to optimise it would cost more than it could save.
            compiler_options={"xla_backend_optimization_level": 0},
        )
        # What only the model finds wrong shows now, not when the run has begun. JAX keeps the
        # trace for then.
        with jax.set_mesh(mesh), implementation_refusals(config.model.gla_implementation):
            jax.eval_shape(new_state)
            if config.model.gla_implementation:  # it may not serve this device
                new_state.lower()
        _check_mixing(config.data, batch_size // parts)
        return cls(
            config=config,
            train_source=train_source,
            eval_source=eval_source,
            train_preprocess=ClassificationPreprocess(config.data, train=True),
            eval_preprocess=ClassificationPreprocess(config.data, train=False),
            info=RunInfo(
                config,
                tuple(train_source.info.metadata["class_names"]),
                train_source.info.fingerprint,
                eval_source.info.fingerprint,
            ),
            mesh=mesh,
            calendar=calendar,
            task=task,
            new_state=new_state,
            train_step=make_train_step(
                task,
                optimizer,
                schedule,
                ema_decay=ema_decay,
                mesh=mesh,
                accumulation_steps=parts,
                freeze=freeze,
                head_prefixes=groups.head_prefixes if groups else (),
            ),
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
            self.train_preprocess,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.data.workers,
            prefetch=self.config.data.prefetch,
        )

    @contextlib.contextmanager
    def eval_batches(self) -> Iterator[Iterator[Batch]]:
        """This process's rows of one pass over the evaluation images.

        If they are few, later passes take them from memory: to start workers for them, again and
        again, would take longer than the evaluation.
        """
        if self.decoded:
            yield iter(self.decoded)
            return
        with eval_batches(
            self.eval_source,
            self.eval_preprocess,
            batch_size=self.config.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.data.workers,
            prefetch=self.config.data.prefetch,
        ) as batches:
            own = len(self.eval_source) / jax.process_count()
            few = own * bytes_per_example(self.eval_preprocess.spec) <= _KEPT_BYTES
            yield self._keeping(batches) if few else batches

    def _keeping(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; those of a pass that comes to its end are kept."""
        some = []
        for batch in batches:
            some.append(batch)
            yield batch
        self.decoded.extend(some)


def _resolve(config: RunConfig, source: Dataset) -> RunConfig:
    """Fills in what the config leaves to the data set, and checks what it does not."""
    in_data = len(source.info.metadata["class_names"])
    classes = config.model.num_classes
    if classes is None:
        classes = in_data
    if classes < in_data:
        raise ConfigError(
            f"config.model.num_classes is {classes}, but the data set has "
            f"{in_data} classes: unset it, or set it to at least that"
        )
    model = dataclasses.replace(config.model, num_classes=classes)
    side = config.data.image_size
    if model.img_size is None and side != getattr(create_model(model.name), "img_size", side):
        model = dataclasses.replace(model, img_size=side)
    optimizer = config.optimizer
    if config.init_weights is None and (optimizer.freeze or optimizer.layer_decay != 1):
        raise ConfigError(
            "config.init_weights is not set, but config.optimizer.freeze or .layer_decay is: they "
            "are for parameters that are trained already. Name a .pth or .safetensors file or a "
            "run: --config.init_weights=FILE"
        )
    return dataclasses.replace(config, model=model)


def _check_mixing(data: DataConfig, rows: int) -> None:
    """Refuses groups that the batch, or each part of it, cannot be cut into."""
    mixup, cutmix = data.mixup_alpha, data.cutmix_alpha
    if mixup or cutmix:

        def once(key: jax.Array) -> Mix:
            group = data.mixup_group
            return draw(key, rows, 1, 1, mixup_alpha=mixup, cutmix_alpha=cutmix, group=group)

        jax.eval_shape(once, jax.random.PRNGKey(0))
