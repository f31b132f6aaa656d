"""The identity of a run in other systems, so that a resumed run continues it there."""

import json
from pathlib import Path

from vig_jax.files import write_json

IDENTITY_FILE = "loggers.json"  # {name of the logger: identity of the run}


def read_identity(workdir: Path, logger: str) -> str | None:
    """Returns the identity that a logger has stored for the run, if any."""
    identity = _read(workdir).get(logger)
    return identity if isinstance(identity, str) else None


def store_identity(workdir: Path, logger: str, identity: str) -> None:
    """Stores the identity of the run for a logger."""
    write_json(workdir / IDENTITY_FILE, _read(workdir) | {logger: identity})


def _read(workdir: Path) -> dict[str, object]:
    file = workdir / IDENTITY_FILE
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return stored if isinstance(stored, dict) else {}
