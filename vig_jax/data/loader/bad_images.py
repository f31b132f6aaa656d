"""Examples that cannot be decoded or are damaged: counted and logged once.

Too many undecodable ones are an error. Damaged ones are used.

In training such an example is replaced by the next decodable one of the data set, so that a run
with some broken files stays reproducible. In evaluation it has weight 0. Either way the batch has
its index under "bad", and the main process passes that to `BadImages`. A damaged example that is
used has -2 - index there.
"""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader.share import AnyPreprocess
from vig_jax.data.preprocess.protocol import DAMAGED
from vig_jax.errors import TooManyBadImagesError, UndecodableImageError

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 20  # about damaged images


class BadImages:
    """Counts the undecodable and the damaged examples of one data set, in one process.

    Its length is the number of undecodable ones.

    Args:
        dataset: the data set that the indices belong to.
        preprocess: finds the reason: workers report only the index.
        limit: `update` raises above this many different examples.
        log_path: JSON lines {"index", "path", "reason"} are appended here, with "used": true for
            damaged examples; None: nowhere. Examples that an earlier run listed there are counted
            again, but not logged again.

    Attributes:
        damaged: indices of the examples that are damaged, but used.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: AnyPreprocess,
        limit: int,
        log_path: Path | None = None,
    ):
        self._dataset = dataset
        self._preprocess = preprocess
        self._limit = limit
        self._log_path = log_path
        self._indices: set[int] = set()
        self.damaged: set[int] = set()
        self._logged = _logged_paths(log_path)

    def __len__(self) -> int:
        return len(self._indices)

    def update(self, bad: Int64[np.ndarray, "*b"]) -> None:
        """Counts the undecodable and damaged examples of a batch.

        Args:
            bad: for each place the index in the data set of its undecodable example, or -2 - index
                of a damaged one, or -1.

        Raises:
            TooManyBadImagesError: the limit is exceeded.
        """
        for index in (-2 - np.unique(bad[bad < -1])).tolist():
            if index not in self.damaged:
                self.damaged.add(index)
                self._log_damaged(index)
        for index in np.unique(bad[bad >= 0]).tolist():
            if index in self._indices:
                continue
            self._indices.add(index)
            name = self._dataset.name_of(index)
            if name not in self._logged:
                self._log(index, name)
            if len(self._indices) > self._limit:
                where = f"; all are listed in {self._log_path}" if self._log_path else ""
                raise TooManyBadImagesError(
                    f"{len(self._indices)} images cannot be decoded, the latest {name}; "
                    f"config.data.max_bad_images={self._limit} allows no more{where}"
                )

    def _log(self, index: int, name: str) -> None:
        reason = self._reason(index)
        logger.warning("cannot decode %s, left out: %s", name, reason)
        self._append({"index": index, "path": name, "reason": reason})

    def _log_damaged(self, index: int) -> None:
        name = self._dataset.name_of(index)
        if name in self._logged:
            return
        reason = self._reason(index)
        if len(self.damaged) <= _MOST_WARNINGS:
            logger.warning(
                "%s is used: %s; config.data.damaged_jpegs=leave_out leaves such images out",
                name,
                reason,
            )
        if len(self.damaged) == _MOST_WARNINGS:
            where = f"; all are listed in {self._log_path}" if self._log_path else ""
            logger.warning("further damaged images are not reported here%s", where)
        self._append({"index": index, "path": name, "reason": reason, "used": True})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            with self._log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")

    def _reason(self, index: int) -> str:
        """Decodes the example once more."""
        try:
            arrays = self._preprocess(self._dataset[index], None)
        except (UndecodableImageError, OSError) as error:
            return str(error)
        if DAMAGED in arrays:
            return str(arrays[DAMAGED])
        return "decoded at the second attempt: is the disk in order?"


def _logged_paths(log_path: Path | None) -> set[str]:
    if log_path is None or not log_path.exists():
        return set()
    paths = set()
    for line in log_path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):  # a line cut short by a crash
            paths.add(json.loads(line)["path"])
    return paths
