"""What Django's own tests of durable tasks find: run by Django, in a process of its own."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests import django_project
from tests.postgresql import PostgreSQL

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}

propagates = pytest.mark.parametrize("propagates", [False, True], ids=["kept in the result", "propagates"])


def run_cases(database: Mapping[str, Any], *, propagates: bool) -> None:
    env = {django_project.EAGER_VARIABLE: "propagates" if propagates else "kept"}
    output = django_project.manage(database, "test", "tests.django_project.shop.cases", "--noinput", env=env)
    assert "Found 35 test(s)." in output
    assert output.rstrip().endswith("OK\nDestroying test database for alias 'default'..."), output


@propagates
def test_djangos_own_tests_pass_on_sqlite(propagates: bool) -> None:
    run_cases(SQLITE, propagates=propagates)


@propagates
def test_djangos_own_tests_pass_on_postgresql(postgresql: PostgreSQL, propagates: bool) -> None:
    run_cases(postgresql.django, propagates=propagates)
