"""How a name is looked up that another package keeps to itself: at import, and with a message that tells what to do."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any, NamedTuple


class Package(NamedTuple):
    """Another package, and the versions of it that are known to have the names which are looked up."""

    name: str
    versions: str
    """As a requirement says it."""
    installed: str = ""
    """Which one that is; empty: as its metadata says."""

    def look_up(self, module: str, path: str) -> Any:
        """What a dotted *path* names in a module of this package.

        Raises:
            ImportError: the installed version does not have it.
        """
        try:
            return attrgetter(path)(import_module(module))
        except (ImportError, AttributeError) as error:
            raise self.lacks(f"{module}.{path}") from error

    def check_attributes(self, kind: type, *names: str) -> None:
        """Check names that only the instances of a class have: its constructor sets them.

        Raises:
            ImportError: it does not.
        """
        constructor: Any = inspect.unwrap(kind.__init__)  # type: ignore[misc]
        if constructor.__globals__ is not vars(import_module(kind.__module__)):
            # Somebody else has put it in the place of the package's own, and it says nothing.
            return
        for name in names:
            if name not in constructor.__code__.co_names:
                raise self.lacks(f"{kind.__module__}.{kind.__qualname__}.{name}")

    def lacks(self, name: str) -> ImportError:
        """What to raise where the installed version does not have a name."""
        installed = self.installed or version(self.name)
        return ImportError(
            f"{self.name} {installed} has no {name}, which celery-durable uses; {self.name}{self.versions} has it: "
            f"install such a version, or a celery-durable that is made for this one"
        )
