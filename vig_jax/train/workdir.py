"""Small files of a run's workdir."""

CONFIG_FILE = "config.json"  # {"config": resolved, "metadata": of the data set, "total_steps": ...}
METRICS_FILE = "metrics.jsonl"
BAD_IMAGES_FILE = "bad_images.jsonl"
