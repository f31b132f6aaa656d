"""The training loop: resume from the last checkpoint, update, log, evaluate, save.

A run is a pure function of its config and data. Resuming restores, in this order:

1. the config and the fingerprints of the data, which must equal those of the checkpoint;
2. the state (parameters, EMA, optimizer, step, random key), onto the present devices;
3. the log files, cut back to the restored step;
4. the data, by its position: batch n and the draws of update n depend only on (seed, n).

`config.init_weights` is read only where there is no checkpoint yet.

An interrupted run therefore ends with the same parameters, bit for bit, as an uninterrupted one, if
it is resumed with the same software on the same number of devices of the same kind.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from vig_jax.config import RunConfig, to_dict
from vig_jax.data import BadImages
from vig_jax.errors import DataWorkerError, NonFiniteLossError
from vig_jax.evaluation.evaluate import evaluate
from vig_jax.files import check_utf8, write_json
from vig_jax.folder_lock import FolderLock, folder_lock
from vig_jax.sharding.mesh import prefetch_to_device
from vig_jax.tasks.protocol import Batch, HostBatch
from vig_jax.train.checkpoint import Checkpoints, Restored
from vig_jax.train.clock import Clock
from vig_jax.train.compilation_cache import use_compilation_cache
from vig_jax.train.compile_ahead import compilation_threads
from vig_jax.train.experiment import Experiment
from vig_jax.train.intervals import Intervals
from vig_jax.train.logging.first_batch import FIRST_BATCH_FILE, draw_first_batch
from vig_jax.train.logging.history import write_report
from vig_jax.train.logging.loggers import LoggedRun, Logger, check_loggers, open_loggers
from vig_jax.train.logging.metrics import DeviceMetrics
from vig_jax.train.logging.writers import RunLog
from vig_jax.train.state import TrainState
from vig_jax.train.stop import StopRequest
from vig_jax.train.workdir import BAD_IMAGES_FILE, CONFIG_FILE
from vig_jax.weights.initial import with_sizes_of_start
from vig_jax.weights.run_folder import CHECKPOINTS, finished


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
        results: the newest evaluation's metrics, named as in metrics.jsonl; empty if there was
            none.
        stopped: whether a signal has ended the run early; everything is saved.
    """

    results: dict[str, float]
    stopped: bool


def run(config: RunConfig, workdir: Path) -> Outcome:
    """Trains to the end or to a stop signal, resuming from the workdir's newest checkpoint.

    Args:
        config: the run's settings.
        workdir: created if absent. Gets config.json, metrics.jsonl, checkpoints/ and the files of
            the loggers, such as tensorboard/; first_batch.png when the run begins, the task's
            detailed results with every evaluation (for classification confusion.npz), and at the
            end the figures of `vig report`.

    Raises:
        DataSetError: the data set is missing or malformed.
        WeightsError: config.init_weights cannot be read or does not fit the model.
        ValueError: a setting that cannot work.
        CheckpointError: the workdir belongs to another run.
        FolderInUseError: another process trains in the workdir.
        NonFiniteLossError: training diverged; the newest checkpoint is from before.
        TooManyBadImagesError: more than config.data.max_bad_images images do not decode.
        DataWorkerError: a process that makes batches is gone.
    """
    check_utf8(workdir, "Orbax")
    check_loggers(config.train.loggers)
    use_compilation_cache(config.train.compilation_cache)
    experiment = Experiment.from_config(with_sizes_of_start(config, workdir))
    config, intervals, mesh = experiment.config, experiment.intervals, experiment.mesh
    initial = None
    if config.init_weights is not None and not finished(workdir / CHECKPOINTS):
        initial = experiment.initial_variables()
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        _lock(workdir) as lock,
        jax.set_mesh(mesh),
        StopRequest() as stop,
        Checkpoints(workdir, keep=config.train.keep_checkpoints, lock=lock) as checkpoints,
        compilation_threads() as threads,
    ):
        like = jax.eval_shape(experiment.new_state)
        begin = checkpoints.restore_newest(like, experiment.info, mesh)
        # The workers start while programs are traced.
        with experiment.train_batches(begin.step if begin else 0) as loaded:
            if begin is None or begin.step < intervals.total:
                experiment = experiment.compiled_ahead(like, threads, begins=begin is None)
            if begin is None:
                state = experiment.state_from(initial[0]) if initial else experiment.new_state()
                begin = Restored(0, state, {}, {})
            if jax.process_index() == 0:
                facts = {
                    "config": to_dict(config),
                    "metadata": dict(experiment.info.metadata),
                    "total_steps": intervals.total,
                }
                write_json(workdir / CONFIG_FILE, facts)
            log = RunLog(
                workdir,
                intervals,
                start_step=begin.step,
                evaluated=bool(begin.metrics),
                loggers=_loggers(config, workdir, begin.step),
            )
            with log:
                log.say(_describe(experiment, begin, workdir))
                if initial:
                    log.say(initial[1])
                step, outcome = _train(experiment, begin, loaded, workdir, checkpoints, log, stop)
                checkpoints.wait()
                if step == intervals.total and jax.process_index() == 0:
                    write_report(workdir)
                log.say(_farewell(step, intervals.total, stop, outcome))
    return outcome


def _train(
    experiment: Experiment,
    begin: Restored,
    loaded: Iterator[HostBatch],
    workdir: Path,
    checkpoints: Checkpoints,
    log: RunLog,
    stop: StopRequest,
) -> tuple[int, Outcome]:
    """Updates until the end of the run or a stop signal.

    Args:
        experiment: the run.
        begin: the state to start from, which is consumed.
        loaded: the batches from there on.
        workdir: of the run.
        checkpoints: of the run.
        log: of the run.
        stop: watches for signals.

    Returns:
        The number of updates done, and how the run ended.
    """
    config, intervals = experiment.config, experiment.intervals
    start, state, results, unlogged = begin
    evaluated = start if results else None
    clock, on_device = Clock(config, start), DeviceMetrics(unlogged)
    bad_images = _bad_images(experiment, workdir, train=True)
    names = tuple(experiment.bundle.task.batch_spec)
    batches = prefetch_to_device(clock.timed(_guarded(loaded)), experiment.mesh, names)
    for step in range(start, intervals.total + 1):  # with `step` updates done
        stopping = stop.agreed()
        eval_due = intervals.eval_due(step) and step != evaluated and not stopping
        save_due = intervals.save_due(step) or eval_due or stopping
        save_due = save_due and step != start
        if step > start and (intervals.log_due(step) or eval_due or save_due):
            try:
                on_device.collect()
            except NonFiniteLossError as error:
                error.add_note(_advice(workdir, checkpoints.latest()))
                raise
            if intervals.log_due(step):
                log.write(step, on_device.mean() | clock.speed(step))
                if hint := clock.hint():
                    log.say(hint)
        if eval_due:
            results = _evaluate(experiment, state, step, workdir, stop)
            log.write(step, results)
            stopping = not results  # a stop was requested meanwhile
        if save_due:
            metrics = results if eval_due else {}
            checkpoints.save(step, state, experiment.info, metrics, on_device.unlogged)
        if eval_due or save_due:
            clock.restart(step)
        if stopping or step == intervals.total:
            break
        batch, on_devices = next(batches)
        bad_images.update(batch["bad"])
        if step == start:
            log.say("compiling the update, or reading it from the cache ...")
        state, device_metrics = experiment.train_step(state, on_devices)
        on_device.add(step + 1, device_metrics)
        log.advance()
        if step == start:  # compilation does not count for the speed
            jax.block_until_ready(device_metrics)
            log.say("first update done")
            if step == 0:
                _show_first_batch(experiment, on_devices, state, workdir, log)
            clock.restart(step + 1)
    return step, Outcome(results, stopping)


def _loggers(config: RunConfig, workdir: Path, start_step: int) -> list[Logger]:
    """Returns the loggers of the run; only the first process has any."""
    if jax.process_index() > 0:
        return []
    return open_loggers(config.train.loggers, LoggedRun(workdir, start_step, to_dict(config)))


def _lock(workdir: Path) -> contextlib.AbstractContextManager[FolderLock | None]:
    """Returns the lock of the workdir; the first process holds it for all."""
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    return folder_lock(workdir, "--workdir")


class _StopMeanwhile(Exception):  # noqa: N818 - control flow, not an error
    """Ends an evaluation because a stop was requested."""


def _guarded(batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
    """Yields the batches; the death of a data worker becomes an error with advice."""
    try:
        yield from batches
    except DataWorkerError as error:
        raise DataWorkerError(
            f"no more batches: {error}. The same command resumes from the newest checkpoint"
        ) from error
    except RuntimeError as error:
        raise DataWorkerError(
            f"no more batches: {error}. Exit code -9 usually means that the machine ran out of "
            "memory: lower config.data.workers, config.data.prefetch or config.train.batch_size. "
            "The same command resumes from the newest checkpoint"
        ) from error


def _show_first_batch(
    experiment: Experiment, batch: Batch, state: TrainState, workdir: Path, log: RunLog
) -> None:
    """Draws the first batch as the model sees it, if the task can."""
    preview, compute = experiment.bundle.preview, experiment.preview
    if preview is None or compute is None:
        return
    path = workdir / FIRST_BATCH_FILE
    pixels = draw_first_batch(preview, compute, batch, state.key, path=path)
    if pixels is not None:
        log.figure("first_batch", pixels)
        log.say(f"first batch as the model sees it: {path}")


def _evaluate(
    experiment: Experiment, state: TrainState, step: int, workdir: Path, stop: StopRequest
) -> dict[str, float]:
    """Returns the metrics of the raw and of the EMA weights; empty if a stop was requested."""
    evaluation = experiment.bundle.evaluation
    bad_images = _bad_images(experiment, workdir, train=False)
    variable_sets = {"eval/": state.variables}
    if state.ema_variables is not None:
        variable_sets["eval/ema_"] = state.ema_variables

    def on_batch(batch: HostBatch) -> None:
        bad_images.update(batch["bad"])
        if stop.agreed():
            raise _StopMeanwhile

    try:
        with experiment.eval_batches() as batches:
            states = evaluate(
                evaluation,
                experiment.predict,
                variable_sets,
                _guarded(batches),
                experiment.mesh,
                on_batch=on_batch,
            )
    except _StopMeanwhile:
        return {}
    results = {
        prefix + name: value
        for prefix, state_of_set in states.items()
        for name, value in evaluation.compute(state_of_set).items()
    }
    if any(not math.isfinite(value) for value in results.values()):
        raise NonFiniteLossError(f"evaluation after update {step}: {results}")
    if jax.process_index() == 0:
        best = list(states)[-1]  # that of the EMA, if there is one
        kind = "EMA weights" if best == "eval/ema_" else "weights"
        epoch = step / experiment.intervals.steps_per_epoch
        name = experiment.config.model.name
        description = f"{name}, {kind} after {step:,} updates (epoch {epoch:.4g})"
        evaluation.save(states[best], workdir, description)
    return results


def _bad_images(experiment: Experiment, workdir: Path, *, train: bool) -> BadImages:
    """Returns this process's account of the undecodable images of a data set."""
    bundle = experiment.bundle
    dataset = experiment.train_data if train else experiment.eval_data
    preprocess = bundle.train_preprocess if train else bundle.eval_preprocess
    process = jax.process_index()
    path = workdir / BAD_IMAGES_FILE
    if process > 0:
        path = path.with_suffix(f".{process}{path.suffix}")
    return BadImages(dataset, preprocess, experiment.config.data.max_bad_images, path)


def _advice(workdir: Path, last_good: int | None) -> str:
    """Returns advice for a run that diverged."""
    kept = (
        f"the last good checkpoint, of step {last_good}, is in {workdir}"
        if last_good
        else "it was before the first checkpoint"
    )
    return (
        f"Nothing was saved after that; {kept}. A lower config.optimizer.base_lr, a longer "
        "warm-up, stronger clipping or float32 helps; use a new --workdir for it."
    )


def _describe(experiment: Experiment, begin: Restored, workdir: Path) -> str:
    """Returns the first lines on the console."""
    config, intervals = experiment.config, experiment.intervals
    count = sum(leaf.size for leaf in jax.tree.leaves(begin.state.params))
    device = jax.devices()[0]
    summary = f", {experiment.bundle.summary}" if experiment.bundle.summary else ""
    lines = [
        f"{config.model.name}: {count:,} parameters, {config.model.dtype}, on "
        f"{jax.device_count()} x {device.device_kind}",
        f"{config.data.source}: {len(experiment.train_data):,} images to train on, "
        f"{len(experiment.eval_data):,} to evaluate{summary}",
        f"{_length(intervals)} of {config.train.batch_size} images; output in {workdir}",
    ]
    if begin.step:
        lines.append(f"resuming from the checkpoint of step {begin.step} of {intervals.total}")
    return "\n".join(lines)


def _length(intervals: Intervals) -> str:
    """Returns the length of the run, in epochs if they are whole."""
    epochs, rest = divmod(intervals.total, intervals.steps_per_epoch)
    if rest:
        return f"{intervals.total} steps ({intervals.total / intervals.steps_per_epoch:.2f} epochs)"
    return f"{epochs} epochs of {intervals.steps_per_epoch} steps"


def _farewell(step: int, total: int, stop: StopRequest, outcome: Outcome) -> str:
    """Returns the last line on the console."""
    if outcome.stopped:
        return (
            f"stopped by {stop.signal.name if stop.signal else 'a signal'} after step {step} of "
            f"{total}, saved; the same command resumes there"
        )
    values = [f"{name.removeprefix('eval/')} {x:.4f}" for name, x in outcome.results.items()]
    return f"done after {total} steps: {', '.join(values)}"
