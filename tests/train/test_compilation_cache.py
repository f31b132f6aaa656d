"""Compiled programs on disk: the second start finds what the first one left."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vig_jax.train.compilation_cache import use_compilation_cache

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--config=configs/fashion_mnist.py",
    "--config.model.img_size=16",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=1",
    "--config.data.source=image_folder",
    "--config.data.image_size=16",
    "--config.data.erase_probability=0.0",
    "--config.train.batch_size=16",
    "--config.train.epochs=1",
)


@pytest.mark.slow
def test_a_second_start_compiles_nothing(image_folder, tmp_path):
    cache = tmp_path / "home" / "cache"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["HOME"] = str(tmp_path / "home")
    command = [sys.executable, "train.py", *OPTIONS, f"--config.data.path={image_folder}"]
    command.append("--config.train.compilation_cache=~/cache")
    entries = []
    for name in ("first", "second"):
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / name}"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        printed = done.stderr.splitlines()
        assert printed[0].startswith("im2col: using xla")
        assert "compiling the update, or reading it from the cache ..." in printed
        entries.append({path.name for path in cache.iterdir()})
    assert any("update_state" in name for name in entries[0])
    assert entries[0] == entries[1]


@pytest.fixture
def chosen():
    """Yields a function that returns the cache folder of JAX; restores the settings afterwards."""
    names = [name for name in dir(jax.config) if "cache_dir" in name or "persistent_cache" in name]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_what_is_set_already_stays(chosen, tmp_path):
    use_compilation_cache("")
    assert chosen() is None
    use_compilation_cache(str(tmp_path / "one"))
    assert chosen() == str(tmp_path / "one")
    use_compilation_cache(str(tmp_path / "two"))
    assert chosen() == str(tmp_path / "one")
    assert not (tmp_path / "two").exists()


def test_programs_are_kept_after_an_earlier_compilation(chosen, tmp_path):
    compilation_cache.reset_cache()
    jax.jit(lambda x: x + 2)(1.0)  # settles that there is no cache
    use_compilation_cache(str(tmp_path))
    jax.jit(lambda x: x * 3)(1.0)
    assert list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(chosen, tmp_path, caplog):
    (tmp_path / "file").touch()
    use_compilation_cache(str(tmp_path / "file" / "cache"))
    assert chosen() is None
    assert "compiled programs are not kept: config.train.compilation_cache" in caplog.text
