"""Private names of other packages are looked up at import. If one is missing, a message tells what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from types import CodeType
from typing import Any


class Package:
    """Another package, and the versions of it that are known to have the names.

    Args:
        name: of the installed distribution.
        versions: as in a requirement.
        installed: the version that is installed. Default: what the metadata of the package says.
    """

    def __init__(self, name: str, versions: str, installed: str = "") -> None:
        self.name = name
        self.versions = versions
        self._installed = installed

    def look_up(self, module: str, path: str) -> Any:
        """The object that a dotted *path* names in a module of this package.

        Raises:
            ImportError: the installed version does not have it.
        """
        try:
            return attrgetter(path)(import_module(module))
        except (ImportError, AttributeError) as error:
            raise self.lacks(f"{module}.{path}") from error

    def check_inside(self, module: str, path: str, *names: str) -> None:
        """Check that the code of a function has these names: of attributes, of variables, or of functions inside.

        Raises:
            ImportError: it has not.
        """
        self._check(module, path, names, names_in)

    def check_attributes(self, module: str, path: str, *names: str) -> None:
        """Check that the code of a function, mostly a constructor, uses these attributes. Variables do not count.

        Raises:
            ImportError: it has not.
        """
        self._check(module, path, names, lambda code: code.co_names)

    def _check(
        self, module: str, path: str, names: Iterable[str], names_of: Callable[[CodeType], Container[str]]
    ) -> None:
        function = inspect.unwrap(self.look_up(module, path))
        if getattr(function, "__globals__", None) is not vars(import_module(module)):
            # Another package has replaced the function. So its code says nothing.
            return
        known = names_of(function.__code__)
        for name in names:
            if name not in known:
                raise self.lacks(f"{module}.{path}: {name}")

    def lacks(self, name: str) -> ImportError:
        """The error to raise if the installed version does not have a name."""
        installed = self._installed or version(self.name)
        return ImportError(
            f"{self.name} {installed} has no {name}, which celery-durable uses; {self.name}{self.versions} has it: "
            f"install such a version, or a celery-durable that is made for this one"
        )


def names_in(code: CodeType) -> set[str]:
    """The names in the code of a function."""
    functions = {part.co_name for part in code.co_consts if isinstance(part, CodeType)}
    return functions.union(code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars)
