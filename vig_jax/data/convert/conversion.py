"""One data set as another: folder, ArrayRecord, tar, parquet; in shards, by several processes.

The order is drawn once, here: classes are contiguous in folders, and even a reader that does not
shuffle well should see them mixed. A shard is written under another name and renamed when whole,
and a marker beside it says what it holds; a conversion that was interrupted goes on from those.
When all are there, `info.json` tells of them and the markers go.

    DST/train-00000-of-00008.arrayrecord  ...  DST/info.json  DST/errors.jsonl (if any)
    DST/.conversion/plan.json, *.done     while it lasts
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import logging
import math
import multiprocessing
import platform
import queue
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from vig_jax.data.convert.writers import RAW, SUFFIXES, WRITERS, Picture, class_folders
from vig_jax.data.dataset import ClassificationDataset, Split
from vig_jax.data.datasets.registry import FILES
from vig_jax.data.formats import shards
from vig_jax.data.loader.workers import isolate
from vig_jax.data.preprocess.decode import decode, read_header
from vig_jax.errors import ConfigError, ConversionError, DataSetError, UndecodableImageError

logger = logging.getLogger(__name__)

Sources = Mapping[Split, ClassificationDataset]

ERRORS_FILE = "errors.jsonl"
SPLIT_NAMES: dict[Split, str] = {"train": "train", "eval": "val"}

_STATE = ".conversion"
_PLAN = "plan.json"
_SAMPLED = 64  # images, to estimate the size of all
_TOLD_EVERY = 16  # images, from a worker to the main process
_LOG_SECONDS = 10.0  # between lines, where there is no terminal
_VERIFIED = 16  # images of a shard, decoded by `verify`
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp", "GIF": "gif"}
_EXTENSIONS |= {"TIFF": "tif", "PPM": "ppm"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a conversion does; the same ones are wanted to resume it."""

    to: str = "array_record"  # a name of vig_jax.data.convert.writers
    shards: int | None = (
        None  # of the training split; the other gets its share. None: by shard_size
    )
    shard_size: int = 256 * 2**20  # bytes, about
    resize_short: int = 0  # pixels: longer shorter sides are reduced to this; 0: files as they are
    reencode_progressive: bool = False  # JPEGs that decode slowly
    quality: int = 95  # of the JPEGs that resizing and re-encoding make
    subsampling: str = "4:2:0"  # of their colours
    shuffle: bool = True
    seed: int = 0  # of the order
    limit: int | None = None  # images per split, the first of the order
    decode: bool = True  # False: images that are copied are not tried
    raw: bool = False  # pixels instead of files: nothing to decode in training, and much to store

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        requirements = {
            "to": (self.to in WRITERS, f"one of {', '.join(WRITERS)}"),
            "shards": (self.shards is None or 1 <= self.shards <= 99_999, "1 to 99,999"),
            "shard_size": (self.shard_size >= 1, "at least 1"),
            "resize_short": (self.resize_short >= 0, "at least 0"),
            "quality": (1 <= self.quality <= 100, "1 to 100"),
            "subsampling": (
                self.subsampling in ("4:4:4", "4:2:2", "4:2:0"),
                "4:4:4, 4:2:2 or 4:2:0",
            ),
            "seed": (0 <= self.seed < 2**32, "0 to 2**32 - 1"),
            "raw": (not self.raw or self.to == "array_record", "false but for array_record"),
            "limit": (self.limit is None or self.limit >= 1, "at least 1"),
        }
        for name, (holds, wanted) in requirements.items():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)} must be {wanted}")


@dataclasses.dataclass(frozen=True)
class _Shard:
    split: Split
    number: int
    total: int
    path: Path
    order: np.ndarray  # int64 positions in the source

    @property
    def marker(self) -> str:
        return f"{SPLIT_NAMES[self.split]}-{self.number:05d}.done"


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every worker needs to know."""

    sources: Sources
    options: Options
    state: Path


_Tell = Callable[[int, int, list[dict[str, Any]]], None]  # images, bytes, errors


def convert(
    sources: Sources,
    destination: Path,
    options: Options,
    *,
    workers: int = 0,
    resume: bool = False,
    max_errors: int = 0,
) -> dict[str, Any]:
    """Writes the splits of a data set to a folder.

    Args:
        sources: by split, with the same classes.
        destination: a new or empty folder, or, to resume, one that a conversion began.
        options: what is wanted.
        workers: processes; 0: this one.
        resume: go on with what an interrupted conversion has left.
        max_errors: images that may be left out, because they cannot be read or decoded.

    Returns:
        What `info.json` holds.

    Raises:
        DataSetError: the destination is in use, or a resumption differs from what was begun.
        ConversionError: `errors.jsonl` tells which; what is done, stays for a resumption.
        OSError: no space, no permission.
        RuntimeError: a worker was killed.
        ConfigError: an option out of range.
    """
    options.check()
    names = {source.class_names for source in sources.values()}
    if len(names) != 1:
        raise DataSetError("the splits differ in their classes" if names else "nothing to convert")
    (class_names,) = names
    state = destination / _STATE
    plan = _plan(sources, options)
    if (info := shards.read_info(destination)) is not None and resume and not state.exists():
        if _filled(info.get("plan", {})) != plan:
            raise DataSetError(f"{destination} was converted differently: {_changes(info, plan)}")
        logger.info("%s is complete", destination)
        return info
    _begin(destination, plan, resume)
    if options.to == "image_folder":
        for split in sources:
            for folder in class_folders(class_names):
                (destination / SPLIT_NAMES[split] / folder).mkdir(parents=True, exist_ok=True)
    job = _Job(sources, options, state)
    todo = _shards(destination, sources, options)
    done = {shard.marker: result for shard in todo if (result := _done(shard, state)) is not None}
    account = _Account(destination / ERRORS_FILE, max_errors, sum(len(s.order) for s in todo))
    try:
        for result in done.values():
            account.update(result["read"], 0, result["errors"], resumed=True)
        left = [shard for shard in todo if shard.marker not in done]
        if done:
            logger.info("%d of %d shards are done", len(done), len(todo))
        if options.limit is None or options.limit > _SAMPLED:
            _check_space(destination, job, left)
        for shard, result in _results(job, left, workers, account.update):
            done[shard.marker] = result
    finally:
        account.close()
    info = _info(sources, class_names, options, plan, [(s, done[s.marker]) for s in todo])
    _write_json(destination / shards.INFO_FILE, info)
    shutil.rmtree(state)
    return info


def _plan(sources: Sources, options: Options) -> dict[str, Any]:
    return {
        "options": dataclasses.asdict(options),
        "sources": {
            SPLIT_NAMES[split]: {"images": len(source), "fingerprint": source.info.fingerprint}
            for split, source in sources.items()
        },
    }


def _filled(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A stored plan, with the options that did not exist when it was made as they stand for it."""
    return {**plan, "options": dataclasses.asdict(Options()) | plan.get("options", {})}


def _changes(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    before = _filled(stored.get("plan", stored))
    if before.get("sources") != plan["sources"]:
        return "its source was another, or has changed since"
    options = plan["options"]
    changed = [k for k in options if before["options"][k] != options[k]]
    return "with other settings of " + ", ".join(changed)


def _begin(destination: Path, plan: Mapping[str, Any], resume: bool) -> None:
    """Takes possession of the destination."""
    stored = destination / _STATE / _PLAN
    if stored.exists():
        if not resume:
            raise DataSetError(
                f"{destination} holds a conversion that was interrupted: --resume goes on with "
                "it; to begin anew, remove the folder"
            )
        before = _filled(json.loads(stored.read_text(encoding="utf-8")))
        if before != plan:
            raise DataSetError(
                f"the conversion in {destination} was begun differently: "
                f"{_changes(before, plan)}; resume it as it was begun, or remove the folder"
            )
        return
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataSetError(f"{destination} is not an empty folder: name a new one")
    stored.parent.mkdir(parents=True)
    _write_json(stored, plan)


def _shards(destination: Path, sources: Sources, options: Options) -> list[_Shard]:
    """All shards; a pure function of the plan."""
    orders = {split: _order(len(source), options) for split, source in sources.items()}
    largest = max(len(order) for order in orders.values())
    per_shard = (
        math.ceil(largest / options.shards)
        if options.shards
        else max(1, int(options.shard_size / _mean_bytes(sources, orders, options)))
    )
    result = []
    for split, order in orders.items():
        total = math.ceil(len(order) / per_shard)
        for number, part in enumerate(np.array_split(order, total)):
            path = _shard_path(destination, SPLIT_NAMES[split], number, total, options.to)
            result.append(_Shard(split, number, total, path, part))
    return result


def _shard_path(destination: Path, name: str, number: int, total: int, to: str) -> Path:
    if to == "image_folder":  # a hidden list; the images are beside it
        return destination / name / f".{number:05d}-of-{total:05d}{SUFFIXES[to]}"
    return destination / f"{name}-{number:05d}-of-{total:05d}{SUFFIXES[to]}"


def _order(length: int, options: Options) -> Int[np.ndarray, "n"]:
    order = np.arange(length)
    if options.shuffle:
        # A generator whose stream is frozen (NEP 19): resuming must find the same order.
        order = np.random.RandomState(options.seed).permutation(length)
    return order[: options.limit]


def _mean_bytes(
    sources: Sources,
    orders: Mapping[Split, np.ndarray],
    options: Options,
) -> float:
    """About how large a converted image is."""
    split = max(orders, key=lambda s: len(orders[s]))
    sizes = []
    quick = dataclasses.replace(options, decode=False)
    for index in orders[split][:: max(1, len(orders[split]) // _SAMPLED)].tolist():
        try:
            sizes.append(len(_picture(sources[split], index, quick).image))
        except (UndecodableImageError, OSError):
            continue
    return float(np.mean(sizes)) if sizes else 1.0


def _check_space(destination: Path, job: _Job, left: list[_Shard]) -> None:
    """A full disk is better met now than in an hour."""
    if not left:
        return
    orders: dict[Split, np.ndarray] = {
        split: np.concatenate(parts)
        for split in job.sources
        if (parts := [shard.order for shard in left if shard.split == split])
    }
    needed = _mean_bytes(job.sources, orders, job.options) * sum(len(s.order) for s in left)
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise ConversionError(
            f"about {needed / 1e9:.1f} GB are to be written to {destination}, but "
            f"{free / 1e9:.1f} GB are free: make room and --resume, or see --resize-short"
        )


def _picture(source: ClassificationDataset, index: int, options: Options) -> Picture:
    """Reads, tries and, where wanted, resizes or re-encodes one image.

    Raises:
        UndecodableImageError: no image.
        OSError: not to be read.
    """
    example = source[index]
    image = example["image"]
    if isinstance(image, np.ndarray):
        image = _encode(Image.fromarray(image), "PNG")
    header = read_header(image)
    size = header.width, header.height
    extension = _EXTENSIONS.get(header.format, header.format.lower())
    short = options.resize_short
    reduced = 0 < short < min(size)
    if reduced or options.raw or (options.reencode_progressive and header.progressive):
        decoded = decode(image)
        if reduced:
            scale = short / min(size)
            size = (
                short if size[0] <= size[1] else round(size[0] * scale),
                short if size[1] <= size[0] else round(size[1] * scale),
            )
            decoded = decoded.resize(size, Image.Resampling.BICUBIC)
        if options.raw:
            image, extension = decoded.tobytes(), RAW
        else:
            settings = {"quality": options.quality, "subsampling": options.subsampling}
            image, extension = _encode(decoded, "JPEG", **settings), "jpg"
    elif options.decode:
        decode(image)
    key = source.name_of(index)
    return Picture(image, example["label"], index, key, extension, *size)


def _encode(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def _write_shard(shard: _Shard, job: _Job, tell: _Tell) -> dict[str, Any]:
    """Writes one shard and its marker; returns what the marker says."""
    source = job.sources[shard.split]
    draft = shard.path.with_name(f"{shard.path.name}.tmp")
    writer = WRITERS[job.options.to](draft, source.class_names)
    counts = np.zeros(source.num_classes, int)
    errors: list[dict[str, Any]] = []
    told = read = size = 0
    try:
        for read, index in enumerate(shard.order.tolist(), 1):
            try:
                picture = _picture(source, index, job.options)
            except (UndecodableImageError, OSError) as error:
                errors.append(
                    {
                        "split": SPLIT_NAMES[shard.split],
                        "index": index,
                        "path": source.name_of(index),
                        "reason": str(error),
                    }
                )
            else:
                writer.add(picture)
                counts[picture.label] += 1
                size += len(picture.image)
            if read - told >= _TOLD_EVERY:
                tell(read - told, size, [])
                told, size = read, 0
    finally:
        writer.close()
    result = {
        "name": shard.path.name,
        "images": int(counts.sum()),
        "bytes": draft.stat().st_size,
        "sha256": _sha256(draft),
        "read": len(shard.order),
        "class_counts": counts.tolist(),
        "errors": errors,
    }
    draft.replace(shard.path)
    _write_json(job.state / shard.marker, result)
    tell(read - told, size, errors)
    return result


def _done(shard: _Shard, state: Path) -> dict[str, Any] | None:
    """What a finished shard's marker says, if the shard is still there and whole."""
    try:
        result = json.loads((state / shard.marker).read_text(encoding="utf-8"))
        whole = shard.path.stat().st_size == result["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return result if whole and result["name"] == shard.path.name else None


# In a worker process: what `_start_worker` was given.
_job: _Job
_told: Any  # a queue of what `_Tell` takes


def _start_worker(job: _Job, told: Any) -> None:
    isolate()
    globals().update(_job=job, _told=told)


def _work(shard: _Shard) -> dict[str, Any]:
    return _write_shard(shard, _job, lambda *news: _told.put(news))


def _results(
    job: _Job, todo: list[_Shard], workers: int, tell: _Tell
) -> Iterator[tuple[_Shard, dict[str, Any]]]:
    """Writes shards, here or in processes; yields each as it is finished."""
    if workers == 0 or len(todo) <= 1:
        for shard in todo:
            yield shard, _write_shard(shard, job, tell)
        return
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(todo)), context, _start_worker, (job, told)
    )
    try:
        waiting = {pool.submit(_work, shard): shard for shard in todo}
        started = set(multiprocessing.active_children()) - others
        while waiting:
            # The pool itself may not watch those that it started last.
            if any(process.exitcode for process in started):
                raise BrokenProcessPool
            finished, _ = concurrent.futures.wait(
                waiting, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
            )
            _pass_on(told, tell)
            for future in finished:
                yield waiting.pop(future), future.result()
        _pass_on(told, tell)
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        # What they are at will not be kept, and they heed no softer signal. (A broken pool has
        # forgotten its processes.)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise ConversionError(
                "a worker process was killed (out of memory?): --resume goes on, "
                "perhaps with fewer --workers"
            ) from error
        raise
    pool.shutdown()


def _pass_on(told: Any, tell: _Tell) -> None:
    while True:
        try:
            tell(*told.get_nowait())
        except queue.Empty:
            return


class _Account:
    """Progress, on a terminal as a bar and elsewhere as lines, and the list of errors."""

    def __init__(self, errors_file: Path, max_errors: int, total: int):
        self._file = errors_file
        self._max_errors = max_errors
        self._errors = 0
        self._bytes = 0
        self._read = 0
        self._total = total
        self._resumed = 0
        self._begun = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total,
            unit="img",
            desc="convert",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        errors_file.unlink(missing_ok=True)  # those of finished shards come again

    def update(
        self, read: int, size: int, errors: list[dict[str, Any]], resumed: bool = False
    ) -> None:
        self._read += read
        self._resumed += read if resumed else 0
        self._bytes += size
        self._errors += len(errors)
        self._bar.update(read)
        self._bar.set_postfix_str(self._state(), refresh=False)
        if errors:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(error) + "\n" for error in errors)
        if self._bar.disable and time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            rate = (self._read - self._resumed) / (self._logged - self._begun)
            left = tqdm.format_interval((self._total - self._read) / max(rate, 1e-9))
            logger.info(
                "%s of %s images, %.0f img/s, %s, %s left",
                f"{self._read:,}",
                f"{self._total:,}",
                rate,
                self._state(),
                left,
            )
        if self._errors > self._max_errors:
            raise ConversionError(
                f"{self._errors} images cannot be converted, listed in {self._file}; "
                f"--max-errors {self._max_errors} allows no more. What is done is kept: "
                f"--resume --max-errors N goes on"
            )

    def _state(self) -> str:
        speed = self._bytes / 1e6 / max(time.monotonic() - self._begun, 1e-9)
        return f"{speed:.1f} MB/s, {self._errors} errors"

    def close(self) -> None:
        self._bar.close()


def _info(
    sources: Sources,
    class_names: tuple[str, ...],
    options: Options,
    plan: Mapping[str, Any],
    results: list[tuple[_Shard, dict[str, Any]]],
) -> dict[str, Any]:
    by_split: dict[Split, list[dict[str, Any]]] = collections.defaultdict(list)
    for shard, result in results:
        by_split[shard.split].append(result)
    info: dict[str, Any] = {
        "format": shards.FORMAT,
        "layout": options.to,
        "class_names": list(class_names),
        "splits": {
            SPLIT_NAMES[split]: {
                "images": sum(r["images"] for r in some),
                "left_out": sum(len(r["errors"]) for r in some),
                "class_counts": np.sum([r["class_counts"] for r in some], axis=0).tolist(),
                "shards": [
                    {key: r[key] for key in ("name", "images", "bytes", "sha256")} for r in some
                ],
            }
            for split, some in by_split.items()
        },
        "plan": dict(plan),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pillow", "numpy", "array_record")},
        },
    }
    if options.to == "image_folder":
        info["class_folders"] = class_folders(class_names)
    return info


def verify(destination: Path) -> int:
    """Compares a converted data set with its `info.json`, and decodes some images of each shard.

    Args:
        destination: the folder.

    Returns:
        How many images it holds.

    Raises:
        DataSetError: what is wrong, all of it.
    """
    info = shards.read_info(destination)
    if info is None:
        raise DataSetError(f"{destination} has no {shards.INFO_FILE} of `vig data convert`")
    problems: list[str] = []
    for name, split in info["splits"].items():
        files = 0
        for shard in tqdm(split["shards"], f"verify {name}", unit="shard", disable=None):
            path = destination / name / shard["name"]
            path = path if info["layout"] == "image_folder" else destination / shard["name"]
            files += shard["images"]
            if not path.is_file():
                problems.append(f"{path} is missing")
            elif path.stat().st_size != shard["bytes"] or _sha256(path) != shard["sha256"]:
                problems.append(f"{path} is not what was written (size or SHA-256)")
            elif info["layout"] == "image_folder":
                problems += _compare_listed(path)
        if files != split["images"]:
            problems.append(f"{name}: {files} images in the shards, {split['images']} in all")
        if not problems:
            problems += _try_reading(destination, info, name)
    if problems:
        more = f"\nand {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataSetError(f"{destination} is damaged:\n" + "\n".join(problems[:20]) + more)
    return sum(split["images"] for split in info["splits"].values())


def _compare_listed(path: Path) -> list[str]:
    """Files of a folder against their list."""
    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = path.parent / name
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif _sha256(file) != digest:
            problems.append(f"{file} is not what was written (SHA-256)")
    return problems


def _try_reading(destination: Path, info: Mapping[str, Any], name: str) -> list[str]:
    split: Split = "train" if name == "train" else "eval"
    source = FILES[info["layout"]](str(destination), split)
    expected = info["splits"][name]
    problems = []
    if len(source) != expected["images"]:
        problems.append(f"{name} has {len(source)} images instead of {expected['images']}")
    count = _VERIFIED * len(expected["shards"])
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist():
        try:
            decode(source[index]["image"])
        except (UndecodableImageError, OSError) as error:
            problems.append(f"{source.name_of(index)}: {error}")
    return problems


def find_kind(path: str) -> str:
    """Tells from its files what a data set is; a name of `FILES`.

    Raises:
        DataSetError: there is nothing, or more than one kind.
    """
    root = Path(path).expanduser()
    suffixes = {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "image_folder"}
    if not root.is_dir():
        if kind := suffixes.get(root.suffix):
            return kind
        raise DataSetError(
            f"{path} is no folder, and its name does not end in {', '.join(suffixes)}"
        )
    found = {
        kind
        for suffix, kind in suffixes.items()
        for pattern in (f"*{suffix}", f"train/*{suffix}", f"val/*{suffix}", f"data/*{suffix}")
        if next(root.glob(pattern), None)
    }
    if len(found) > 1:
        raise DataSetError(f"{path} holds {' and '.join(sorted(found))}: say which by --from")
    return found.pop() if found else "image_folder"


def open_splits(path: str, kind: str) -> dict[Split, ClassificationDataset]:
    """Opens the splits that a data set has; an undivided one as its training split.

    Raises:
        DataSetError: none, or one that cannot be opened.
    """
    result: dict[Split, ClassificationDataset] = {}
    for split in SPLIT_NAMES:
        if _has(path, kind, split):
            result[split] = FILES[kind](path, split)
    if not result:
        result["train"] = FILES[kind](path, "all")
    return result


def _has(path: str, kind: str, split: Split) -> bool:
    if kind == "image_folder":
        return (Path(path).expanduser() / SPLIT_NAMES[split]).is_dir()
    return bool(shards.has_shards(path, split, SUFFIXES[kind]))


def _sha256(file: Path) -> str:
    with file.open("rb") as contents:
        return hashlib.file_digest(contents, "sha256").hexdigest()


def _write_json(file: Path, value: Any) -> None:
    draft = file.with_name(f"{file.name}.tmp")
    draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)
