"""Examples that cannot be decoded: counted, logged once, and an error if there are too many.

In training such an example is replaced by the next decodable one of the data set, so that a run
with some broken files stays reproducible. In evaluation it has weight 0. Either way the batch has
its index under "bad", and the main process passes that to `BadImages`.
"""

import contextlib
import json
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vig_jax.data.dataset import Dataset
from vig_jax.data.preprocess.protocol import Preprocess
from vig_jax.errors import TooManyBadImagesError, UndecodableImageError

logger = logging.getLogger(__name__)


class BadImages:
    """Counts the undecodable examples of one data set, in one process.

    Args:
        dataset: the data set that the indices belong to.
        preprocess: finds the reason: workers report only the index.
        limit: `update` raises above this many different examples.
        log_path: JSON lines {"index", "path", "reason"} are appended here; None: nowhere. Examples
            that an earlier run listed there are counted again, but not logged again.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, limit: int, log_path: Path | None = None
    ):
        self._dataset = dataset
        self._preprocess = preprocess
        self._limit = limit
        self._log_path = log_path
        self._indices: set[int] = set()
        self._logged = _logged_paths(log_path)

    def __len__(self) -> int:
        return len(self._indices)

    def update(self, bad: Int64[np.ndarray, "b"]) -> None:
        """Counts the undecodable examples of a batch.

        Args:
            bad: index in the data set of each row's undecodable example, or -1.

        Raises:
            TooManyBadImagesError: the limit is exceeded.
        """
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
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            with self._log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"index": index, "path": name, "reason": reason}) + "\n")

    def _reason(self, index: int) -> str:
        """Decodes the example once more."""
        try:
            self._preprocess(self._dataset[index], None)
        except (UndecodableImageError, OSError) as error:
            return str(error)
        return "decoded at the second attempt: is the disk in order?"


def _logged_paths(log_path: Path | None) -> set[str]:
    if log_path is None or not log_path.exists():
        return set()
    paths = set()
    for line in log_path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):  # a line cut short by a crash
            paths.add(json.loads(line)["path"])
    return paths
