"""Small files of a run's workdir."""

import json
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"  # {"config": resolved, "metadata": of the data set, "total_steps": ...}
METRICS_FILE = "metrics.jsonl"
BAD_IMAGES_FILE = "bad_images.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step: a killed process leaves the old text or the new one."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")
