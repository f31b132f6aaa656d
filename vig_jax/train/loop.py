"""When things happen in a run: go on from the last checkpoint, update, look, save.

A run is a pure function of its config and data. Going on after a break restores, in this order:

1. the config and the data's fingerprints, which must be those of the checkpoint;
2. the state (parameters, averages, optimizer, step, random key), onto whatever devices there are;
3. the log files, cut back to the restored step;
4. the data, by its position alone: batch n and the draws of update n depend on (seed, n).

`config.init_weights` is read where there is no checkpoint yet, and never again.

So an interrupted run ends with the same parameters, bit for bit, as one that was left alone, if it
goes on with the same software on as many devices of the same kind.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from vig_jax.config import RunConfig, to_dict
from vig_jax.data import BadImages, Dataset, Preprocess
from vig_jax.data.loader.workers import cpu_count
from vig_jax.errors import DataWorkerError, NonFiniteLossError
from vig_jax.evaluation.accuracy import HostSums, evaluate
from vig_jax.metrics.confusion import Confusion
from vig_jax.sharding.mesh import prefetch_to_device
from vig_jax.train.calendar import Calendar
from vig_jax.train.checkpoint import Checkpoints
from vig_jax.train.compilation_cache import use_compilation_cache
from vig_jax.train.experiment import Experiment
from vig_jax.train.imported import initial_params
from vig_jax.train.logging.first_batch import FIRST_BATCH_FILE, draw_first_batch, model_inputs
from vig_jax.train.logging.metrics import DeviceMetrics
from vig_jax.train.logging.report import write_report
from vig_jax.train.logging.writers import RunLog
from vig_jax.train.state import TrainState
from vig_jax.train.stop import StopRequest
from vig_jax.train.workdir import BAD_IMAGES_FILE, CONFIG_FILE, write_json
from vig_jax.weights.run_folder import CHECKPOINTS, finished

_MUCH_WAITING = 0.1  # of the time, for data: worth a hint
_LONG_ENOUGH = 5.0  # seconds between two log steps, to tell by


def run(config: RunConfig, workdir: Path) -> dict[str, float]:
    """Trains to the end, or to a stop signal, going on from what the workdir holds.

    Args:
        config: the experiment.
        workdir: made if absent. Gets config.json, metrics.jsonl, tensorboard/ and checkpoints/;
            first_batch.png when the run begins, confusion.npz with every evaluation, and at the
            end what `vig report` draws.

    Returns:
        The newest evaluation's metrics, named as in metrics.jsonl; empty if there was none.

    Raises:
        DataSetError: the data set is not there or not as it should be.
        WeightsError: config.init_weights cannot be read or does not fit the model.
        ValueError: a setting that cannot work.
        CheckpointError: the workdir belongs to another run.
        NonFiniteLossError: training diverged; the newest checkpoint is from before.
        TooManyBadImagesError: more than config.data.max_bad_images images do not decode.
        DataWorkerError: a process that makes batches is gone.
    """
    use_compilation_cache(config.train.compilation_cache)
    experiment = Experiment.of(config)
    config, calendar, mesh = experiment.config, experiment.calendar, experiment.mesh
    beginning = None
    if config.init_weights is not None and not finished(workdir / CHECKPOINTS):
        beginning = initial_params(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        Checkpoints(
            workdir, keep=config.train.keep_checkpoints, headline=experiment.task.headline
        ) as checkpoints,
    ):
        saved = checkpoints.latest()
        if saved is None:
            assert beginning or config.init_weights is None
            start, results = 0, {}
            state = experiment.state_from(beginning[0]) if beginning else experiment.new_state()
        else:
            start, results = saved, checkpoints.metrics(saved)
            like = jax.eval_shape(experiment.new_state)
            state = checkpoints.restore(saved, like, experiment.info, mesh)
        evaluated = start if results else None
        if jax.process_index() == 0:
            facts = {
                "config": to_dict(config),
                "class_names": experiment.info.class_names,
                "total_steps": calendar.total,
            }
            write_json(workdir / CONFIG_FILE, facts)
        with (
            RunLog(workdir, calendar, start_step=start, evaluated=bool(results)) as log,
            experiment.train_batches(start) as train_batches,
        ):
            clock = _Clock(config, start)
            waited_for = clock.timed(_guarded(train_batches))
            batches = prefetch_to_device(waited_for, mesh, ("image", "label"))
            log.say(_describe(experiment, state, start, workdir))
            if beginning:
                log.say(beginning[1])
            bad_images = _bad_images(
                experiment.train_source, experiment.train_preprocess, config, workdir
            )
            on_device = DeviceMetrics()
            for step in range(start, calendar.total + 1):  # with `step` updates done
                stopping = stop.agreed(step, calendar.log_every)
                eval_due = calendar.eval_due(step) and step != evaluated and not stopping
                save_due = calendar.save_due(step) or eval_due or stopping
                save_due = save_due and step not in (0, saved)
                if step > start and (calendar.log_due(step) or eval_due or save_due):
                    try:
                        metrics = on_device.take()
                    except NonFiniteLossError as error:
                        error.add_note(_advice(workdir, checkpoints.latest()))
                        raise
                    if calendar.log_due(step):
                        log.write(step, metrics | clock.speed(step))
                        if hint := clock.hint():
                            log.say(hint)
                if eval_due:
                    results = _evaluate(experiment, state, step, workdir, stop)
                    log.write(step, results)
                    stopping = not results  # a stop was asked for meanwhile
                if save_due:
                    checkpoints.save(step, state, experiment.info, results if eval_due else {})
                if eval_due or save_due:
                    clock.restart(step)
                if stopping or step == calendar.total:
                    break
                batch, placed = next(batches)
                bad_images.update(batch["bad"])
                if step == 0:
                    _show_first_batch(experiment, placed, state, workdir, log)
                if step == start:
                    log.say("compiling the update, or reading it from the cache ...")
                state, device_metrics = experiment.train_step(state, placed)
                on_device.add(step + 1, device_metrics)
                log.advance()
                if step == start:  # the compilation is no part of the speed
                    jax.block_until_ready(device_metrics)
                    clock.restart(step + 1)
            checkpoints.wait()
            if step == calendar.total and jax.process_index() == 0:
                write_report(workdir)
            log.say(_farewell(step, calendar.total, stop, results))
    return results


class _StopMeanwhile(Exception):  # noqa: N818 - a way out, not an error
    pass


class _Clock:
    """Speed of training since the last look, without the time spent otherwise."""

    def __init__(self, config: RunConfig, step: int) -> None:
        self._config = config
        self._hint = ""
        self._hinted = False
        self.restart(step)

    def restart(self, step: int) -> None:
        self._since = (step, time.perf_counter())
        self._waited = 0.0  # seconds

    def timed(
        self, batches: Iterator[Mapping[str, np.ndarray]]
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """The batches; until each is there, time is spent waiting for data."""
        begin = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def speed(self, step: int) -> dict[str, float]:
        """Images per second, and the share of the time spent waiting for data.

        The device is given work ahead, so waiting that it does not notice hardly counts: the loop
        then waits for the device in turn.
        """
        (first, then), waited = self._since, self._waited
        self.restart(step)
        if step == first:  # just restarted: nothing to measure yet
            return {}
        seconds = self._since[1] - then
        share = waited / seconds
        if share > _MUCH_WAITING and seconds > _LONG_ENOUGH:
            self._hint = (
                f"hint: {share:.0%} of the time was spent waiting for data. More workers "
                f"(config.data.workers={self._config.data.workers}; this machine has {cpu_count()} "
                "CPUs) or files that decode faster (`vig data convert --resize-short`) help; "
                "`vig data benchmark` tells what an image costs, docs/data.md the rest"
            )
        images = (step - first) * self._config.train.batch_size
        return {"train/img_per_s": images / seconds, "train/data_wait": share}

    def hint(self) -> str:
        """What to do if data is scarce; empty if it is not, or if that has been said."""
        if self._hinted or not self._hint:
            return ""
        self._hinted = True
        return self._hint


def _guarded(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    """The batches; that a worker is gone is told with what to do about it."""
    try:
        yield from batches
    except RuntimeError as error:
        raise DataWorkerError(
            f"no more batches: {error}. Exit code -9 mostly means that the machine ran out of "
            "memory: lower config.data.workers, config.data.prefetch or config.train.batch_size. "
            "The same command goes on from the newest checkpoint"
        ) from error


def _show_first_batch(
    experiment: Experiment,
    batch: Mapping[str, jax.Array],
    state: TrainState,
    workdir: Path,
    log: RunLog,
) -> None:
    """Draws what the model is about to see."""
    pixels, targets = model_inputs(
        experiment.task,
        batch,
        state.key,
        experiment.mesh,
        accumulation_steps=experiment.config.train.accumulation_steps,
    )
    if jax.process_index() == 0:
        path = workdir / FIRST_BATCH_FILE
        sheet = draw_first_batch(pixels, targets, experiment.info.class_names, path)
        log.picture("first_batch", sheet)
        log.say(f"what the model sees: {path}")


def _evaluate(
    experiment: Experiment, state: TrainState, step: int, workdir: Path, stop: StopRequest
) -> dict[str, float]:
    """Metrics of the parameters and of their averages; empty if a stop was asked for meanwhile."""
    bad_images = _bad_images(
        experiment.eval_source, experiment.eval_preprocess, experiment.config, workdir
    )
    parameter_sets = {"eval/": state.params}
    if state.ema_params is not None:
        parameter_sets["eval/ema_"] = state.ema_params

    def on_batch(batch: Mapping[str, np.ndarray]) -> None:
        bad_images.update(batch["bad"])
        if stop.requested and jax.process_count() == 1:  # of several, none may leave the others
            raise _StopMeanwhile

    try:
        with experiment.eval_batches() as batches:
            sums = evaluate(
                experiment.eval_step,
                parameter_sets,
                _guarded(batches),
                experiment.mesh,
                on_batch=on_batch,
            )
    except _StopMeanwhile:
        return {}
    results = {
        prefix + name: value
        for prefix, of_these in sums.items()
        for name, value in experiment.task.metrics(of_these).items()
    }
    if any(not math.isfinite(value) for value in results.values()):
        raise NonFiniteLossError(f"evaluation after update {step}: {results}")
    if jax.process_index() == 0:
        best = "eval/ema_" if "eval/ema_" in sums else "eval/"
        _save_confusion(experiment, sums[best], step, workdir, averaged=best == "eval/ema_")
    return results


def _save_confusion(
    experiment: Experiment, sums: HostSums, step: int, workdir: Path, *, averaged: bool
) -> None:
    """Stores which classes were taken for which, if the task counts it."""
    if "confusion" in sums:
        epoch = step / experiment.calendar.steps_per_epoch
        kind = "averaged weights" if averaged else "weights"
        Confusion.of(
            sums["confusion"],
            experiment.info.class_names,
            f"{experiment.config.model.name}, {kind} after {step:,} updates (epoch {epoch:.4g})",
        ).save(workdir)


def _bad_images(
    source: Dataset, preprocess: Preprocess, config: RunConfig, workdir: Path
) -> BadImages:
    """The account of one source in this process."""
    process = jax.process_index()
    path = workdir / BAD_IMAGES_FILE
    if process > 0:
        path = path.with_suffix(f".{process}{path.suffix}")
    return BadImages(source, preprocess, config.data.max_bad_images, path)


def _advice(workdir: Path, last_good: int | None) -> str:
    """What to do after training diverged."""
    kept = (
        f"the last good checkpoint, of step {last_good}, is in {workdir}"
        if last_good
        else "it was before the first checkpoint"
    )
    return (
        f"Nothing was saved after that; {kept}. A lower config.optimizer.base_lr, a longer "
        "warm-up, stronger clipping or float32 helps; use a new --workdir for it."
    )


def _describe(experiment: Experiment, state: TrainState, start: int, workdir: Path) -> str:
    """The first lines on the console."""
    config, calendar = experiment.config, experiment.calendar
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    lines = [
        f"{config.model.name}: {count:,} parameters, {config.model.dtype}, on "
        f"{jax.device_count()} x {device.device_kind}",
        f"{config.data.source}: {len(experiment.train_source):,} images to train on, "
        f"{len(experiment.eval_source):,} to evaluate, {config.model.num_classes} classes",
        f"{_length(calendar)} of {config.train.batch_size} images; all goes to {workdir}",
    ]
    if start:
        lines.append(f"going on from the checkpoint of step {start} of {calendar.total}")
    return "\n".join(lines)


def _length(calendar: Calendar) -> str:
    """How long the run is, in epochs if they are whole."""
    epochs, rest = divmod(calendar.total, calendar.steps_per_epoch)
    if rest:
        return f"{calendar.total} steps ({calendar.total / calendar.steps_per_epoch:.2f} epochs)"
    return f"{epochs} epochs of {calendar.steps_per_epoch} steps"


def _farewell(step: int, total: int, stop: StopRequest, results: dict[str, float]) -> str:
    """The last line on the console."""
    if step < total or (stop.signal and not results):
        return (
            f"stopped by {stop.signal.name if stop.signal else 'a signal'} after step {step} of "
            f"{total}, saved; the same command goes on from there"
        )
    values = ", ".join(f"{name.removeprefix('eval/')} {x:.4f}" for name, x in results.items())
    return f"done after {total} steps: {values}"
