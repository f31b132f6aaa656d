"""The description of the package on an index: README.md without the links into the repository.

Everything else about the package is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

LINK = r"\[([^\]]*)\]\((?!https?:)[^)]*\)"  # a link without a host

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub(rf"!{LINK}\n+", "", text)  # figures
setup(
    long_description=re.sub(LINK, r"\1", text),
    long_description_content_type="text/markdown",
)
