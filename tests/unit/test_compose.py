"""docker-compose.yml says what its services need; it is brought up for real where there is an engine."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "docker-compose.yml").read_text())


def test_the_services_are_redis_worker_flower_and_the_example(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redis", "gateway", "worker", "flower", "client"}
    assert "name" not in compose  # Compose v1 refuses it


def test_every_service_that_goes_on_is_watched(compose: dict[str, Any]) -> None:
    goes_on = {name: service for name, service in compose["services"].items() if name != "client"}
    assert [name for name, service in goes_on.items() if "healthcheck" not in service] == []


def test_nothing_starts_before_what_it_needs_is_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert set(needs["worker"]) == {"redis", "gateway"}
    assert {how["condition"] for need in needs.values() for how in need.values()} == {"service_healthy"}


def test_redis_keeps_its_journal_on_a_volume(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    assert "--appendonly yes" in redis["command"]
    assert [volume.partition(":")[0] for volume in redis["volumes"]] == list(compose["volumes"])


def test_flower_answers_its_api(compose: dict[str, Any]) -> None:
    environment = compose["services"]["flower"]["environment"]
    assert "FLOWER_BASIC_AUTH" in environment or environment.get("FLOWER_UNAUTHENTICATED_API") == "true"


def test_the_dockerfile_is_there(compose: dict[str, Any]) -> None:
    build = compose["services"]["worker"]["build"]
    assert (PROJECT / build["context"] / build["dockerfile"]).is_file()


def _compose() -> list[str]:
    """The command of Compose: a plugin of Docker's, or, where that is older, a program of its own."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    return []


COMPOSE = _compose()


@pytest.mark.skipif(not COMPOSE, reason="neither `docker compose` nor docker-compose is here")
def test_compose_accepts_the_file() -> None:
    checked = subprocess.run([*COMPOSE, "config", "-q"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
