"""Progress of a conversion: a bar on a terminal and log lines elsewhere, and the list of errors."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vig_jax.errors import ConversionError

logger = logging.getLogger(__name__)


class Progress:
    """Counts images and errors. Use it in a `with` statement.

    Args:
        errors_file: JSON lines of errors; replaced.
        max_errors: `update` raises above this number.
        total: images to read.
        log_seconds: at least between two log lines.
    """

    def __init__(
        self, errors_file: Path, max_errors: int, total: int, *, log_seconds: float = 10.0
    ):
        self._file = errors_file
        self._max_errors = max_errors
        self._total = total
        self._log_seconds = log_seconds
        self._errors = self._bytes = self._read = self._resumed = 0
        self._started = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total,
            unit="img",
            desc="convert",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        errors_file.unlink(missing_ok=True)  # the errors of finished shards are listed again

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(
        self, read: int, size: int, errors: list[dict[str, Any]], *, resumed: bool = False
    ) -> None:
        """Adds to the counts.

        Args:
            read: images.
            size: bytes written.
            errors: one entry per image that was left out.
            resumed: the images were converted before this run, so they say nothing of its speed.

        Raises:
            ConversionError: too many errors.
        """
        self._read += read
        self._resumed += read if resumed else 0
        self._bytes += size
        self._errors += len(errors)
        self._bar.update(read)
        self._bar.set_postfix_str(self._summary(), refresh=False)
        if errors:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(error) + "\n" for error in errors)
        if self._bar.disable and time.monotonic() - self._logged > self._log_seconds:
            self._log()
        if self._errors > self._max_errors:
            raise ConversionError(
                f"{self._errors} images cannot be converted, listed in {self._file}; "
                f"--max-errors {self._max_errors} allows no more. Finished shards are kept: "
                "--resume --max-errors N continues"
            )

    def _log(self) -> None:
        self._logged = time.monotonic()
        rate = (self._read - self._resumed) / (self._logged - self._started)
        left = tqdm.format_interval((self._total - self._read) / max(rate, 1e-9))
        counts = f"{self._read:,} of {self._total:,} images"
        logger.info("%s, %.0f img/s, %s, %s left", counts, rate, self._summary(), left)

    def _summary(self) -> str:
        speed = self._bytes / 1e6 / max(time.monotonic() - self._started, 1e-9)
        return f"{speed:.1f} MB/s, {self._errors} errors"
