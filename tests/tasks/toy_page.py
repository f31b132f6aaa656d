"""A config page for `tests.tasks.toy`."""

from tests.tasks import toy


def get_config():
    return toy.page()
