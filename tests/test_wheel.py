"""The wheel that users install has everything that the packages read at run time, and no tests."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels_pallas", "vig_jax")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the wheel of a copy of the tree with setuptools, without a network."""
    pytest.importorskip("setuptools", minversion="77")  # of requirements-dev.txt
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in (*PACKAGES, "tests"):
        # No contents: only the tests' names could slip into the wheel.
        copy = shutil.copy if package in PACKAGES else lambda _, file: Path(file).touch()
        shutil.copytree(ROOT / package, tree / package, ignore=ignore, copy_function=copy)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-c", BUILD, str(out)]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert not built.returncode, built.stderr[-2000:]
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(built):
    """The size of each file in the wheel, by name."""
    with zipfile.ZipFile(built) as archive:
        return {name: archive.getinfo(name).file_size for name in archive.namelist()}


def test_every_module_is_in_it(wheel):
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert str(file.relative_to(ROOT)) in wheel


def test_every_data_file_is_in_it(wheel):
    """Whatever lies beside the modules: marks of types, winners, embedded data, licences, pages."""
    expected = {
        str(file.relative_to(ROOT)): file.stat().st_size
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    names = "\n".join(expected)
    for part in (
        "/py.typed",
        "/autotune/data/",
        "gla/README.md",
        "fashion_mnist/",
        "imagenet/",
        "ade20k/",
    ):
        assert part in names
    assert expected.items() <= wheel.items()


def test_nothing_else_is_in_it(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == set(PACKAGES)
    assert not [name for name in wheel if ".data/" in name]


def test_its_description_has_no_links_into_the_repository(built):
    """They would lead nowhere on an index of packages."""
    with zipfile.ZipFile(built) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in text
    assert "More: training," in text
    assert "[AAAI 2025](https://arxiv.org/abs/2405.18425)" in text
    assert "make demo " in text
    assert not re.findall(r"\]\((?!https://)", text)


def test_it_installs_the_command(wheel):
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
