"""Plugins: modules of the user that register data sets, tasks, augmentations, loggers and models.

`config.plugins` names them. They are code, so only the user's command imports them. The config of a
run or of a hub folder may come from somebody else: reading it checks that its plugins are imported.
"""

import importlib
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from vig_jax.errors import ConfigError, UserError
from vig_jax.text import first_line, printable


def import_plugins(names: Iterable[str]) -> None:
    """Imports plugins, which register what they add.

    Args:
        names: of modules, as in "my_package.vig".

    Raises:
        ConfigError: a plugin is missing, fails, or registers a name that is in use.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except UserError as error:  # such as a name that is registered twice
            raise ConfigError(f"plugin {name}: {error}") from error
        except Exception as error:  # any, as the code is the user's
            reason = _reason(name, error)
            raise ConfigError(f"plugin {name} cannot be imported: {reason}") from error


def check_plugins(config: Any, where: object) -> None:
    """Checks that the plugins of a config are imported, without importing them.

    Args:
        config: nested mapping, as stored; what is malformed is left to `vig_jax.config.parse`.
        where: of the config, for the message.

    Raises:
        ConfigError: names the option that imports them.
    """
    stored = config.get("plugins", ()) if hasattr(config, "get") else ()
    names = stored if isinstance(stored, list | tuple) else ()
    missing = [printable(str(name)) for name in names if str(name) not in sys.modules]
    if missing:
        options = " ".join(f"--plugin {name}" for name in missing)
        raise ConfigError(
            f"{where} uses code that was not imported: if you trust it, add {options} (in Python, "
            "import it first)"
        )


def _reason(name: str, error: Exception) -> str:
    """Returns why a plugin was not imported, and the line in it."""
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
        return (
            f"there is no module {error.name!r}; name one that is installed, or that lies in the "
            "folder of the command"
        )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{first_line(error)} ({frame.filename}, line {frame.lineno})"
