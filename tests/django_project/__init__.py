"""A small Django project whose tasks are durable; in a process of its own, since Django is one per process.

`environment()` is what such a process needs, `prepare()` makes the tables.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.processes import PROJECT

DATABASE_VARIABLE = "DURABLE_TEST_DATABASE"
REUSE_VARIABLE = "DURABLE_TEST_REUSE"
"""How often a connection is used, if the age of connections is not to count."""
EAGER_VARIABLE = "DURABLE_TEST_EAGER"
"""Set in eager mode: `propagates`, or anything else."""


def environment(database: Mapping[str, Any]) -> dict[str, str]:
    """What a process of the project has in its environment; *database*: of Django's setting DATABASES."""
    return {
        "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
        DATABASE_VARIABLE: json.dumps(dict(database)),
        "PYTHONPATH": str(PROJECT),
    }


def manage(database: Mapping[str, Any], *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Do what `manage.py` does; return what it writes."""
    command = [sys.executable, "-m", "django", *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, cwd=PROJECT,
        env={**os.environ, **environment(database), **(env or {})},
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def prepare(database: Mapping[str, Any]) -> None:
    """Make the tables."""
    manage(database, "migrate", "--run-syncdb", "-v0")
