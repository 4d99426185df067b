"""Runs in Flower: what its pages and its API answer, and to whom."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import requests
from celery import Celery
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.options import options
from tornado.testing import bind_unused_port
from tornado.web import create_signed_value

from celery_durable.app.store import store_of
from celery_durable.flower import asking, install
from celery_durable.journal.attributes import attributes_text
from celery_durable.operate.runs import Runs
from celery_durable.seams.flower import handlers, settings
from tests.integration.network import Waits
from tests.integration.runs import app_at
from tests.planting import OWNER, Garden, done, sleep
from tests.servers import free_port

ANN = ("ann", "secret")
SECRET = "a secret of the test"  # noqa: S105
HOSTILE = "<script>hacked()</script>\"'>&"


class Site:
    """A Flower in a thread of this process, and who asks it."""

    def __init__(self, flower: Any, port: int, prefix: str) -> None:
        self.flower = flower
        self.root = f"http://127.0.0.1:{port}{prefix}"
        self.session = requests.Session()

    def get(self, path: str, **given: Any) -> requests.Response:
        return self.session.get(self.root + path, timeout=20, allow_redirects=False, **given)

    def post(self, path: str, facts: Any = None, **given: Any) -> requests.Response:
        given.setdefault("json", {} if facts is None else facts)
        return self.session.post(self.root + path, timeout=20, allow_redirects=False, **given)


@contextmanager
def site_of(app: Celery, **wanted: Any) -> Iterator[Site]:
    """Let Flower answer, with these options."""
    from flower.app import Flower

    install()
    before = {name: getattr(options, name) for name in wanted}
    for name, value in wanted.items():
        setattr(options, name, value)
    made: Future[tuple[Any, int, IOLoop]] = Future()

    async def serve() -> None:
        try:
            over = asyncio.Event()
            flower = Flower(
                options=options, capp=app, io_loop=IOLoop.current(), **{**settings, "cookie_secret": SECRET}
            )
            socket, port = bind_unused_port()
            server = HTTPServer(flower)
            server.add_socket(socket)
            flower.over = lambda: flower.io_loop.add_callback(over.set)
            made.set_result((flower, port, flower.io_loop))
        except BaseException as error:
            made.set_exception(error)
            raise
        await over.wait()
        server.stop()
        await server.close_all_connections()
        flower.executor.shutdown(wait=False)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="flower")
    thread.start()
    try:
        flower, port, _ = made.result(timeout=20)
        site = Site(flower, port, f"/{wanted['url_prefix']}" if "url_prefix" in wanted else "")
        with site.session:
            yield site
        flower.over()
    finally:
        thread.join(timeout=20)
        for name, value in before.items():
            setattr(options, name, value)


@pytest.fixture
def site(app: Celery) -> Iterator[Site]:
    """A Flower to which Ann has logged in."""
    with site_of(app, basic_auth=[":".join(ANN)]) as site:
        site.session.auth = ANN
        yield site


@pytest.fixture
def garden(app: Celery, redis_client: redis.Redis) -> Garden:
    return Garden(store_of(app), redis_client, int(time.time() * 1000))


def test_it_is_installed_once() -> None:
    install()
    before = list(handlers)

    install()

    assert handlers == before


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_tab_lists_runs_and_counts_them(site: Site, garden: Garden) -> None:
    garden.plant("good", call=([7], {"express": True}))
    garden.plant("bad", status="failed", error=("Declined", "no money"))

    page = site.get("/durable")

    assert page.status_code == 200
    assert ">Durable</a>" in page.text
    for text in ("shop.order", "good", "7, express=True", "Declined: no money", "/durable/run/bad"):
        assert text in page.text
    only = site.get("/durable?state=FAILURE").text
    assert "/durable/run/bad" in only
    assert "/durable/run/good" not in only


def test_runs_are_found_by_text_and_by_attributes(site: Site, garden: Garden) -> None:
    attributes = attributes_text({"order": "o1", "region": "a=b"})
    garden.plant("first", call=(["Anna"], {}), fields={"attributes": attributes})
    garden.plant("second", call=(["Bob"], {}))

    for query in ("text=anna", "attribute=order%3Do1", "attribute=region%3Da%3Db&attribute=order%3Do1"):
        assert [run["id"] for run in site.get(f"/api/durable/runs?{query}").json()["runs"]] == ["first"]
    page = site.get("/durable?attribute=order%3Do1").text
    assert "/durable/run/first" in page
    assert "/durable/run/second" not in page
    assert "region=a=b" in page
    assert "region=a=b" in site.get("/durable/run/first").text


def test_the_page_of_a_run_tells_all_of_it(site: Site, garden: Garden) -> None:
    until = garden.now + 3_600_000
    garden.plant(
        "asleep",
        done("charge", garden.now, 12, {"id": "ch_7"}),
        sleep("until tomorrow", until),
        status="suspended",
        call=([7], {}),
        fields={"owner": OWNER, "due": until, "left": garden.now},
    )

    text = site.get("/durable/run/asleep").text

    for part in ("SUSPENDED", "the end of a sleep", "until tomorrow", "charge", "ch_7", OWNER, "12 ms"):
        assert part in text
    assert 'data-durable-verb="wake"' in text
    assert 'data-durable-verb="cancel"' in text
    assert 'data-durable-verb="retry"' not in text


def test_the_steps_of_a_long_run_are_shown_some_at_a_time(site: Site, garden: Garden) -> None:
    garden.plant("long", *[done(f"step-{number}-", garden.now + number, 1) for number in range(1, 451)])

    first, last = site.get("/durable/run/long").text, site.get("/durable/run/long?from=401").text

    assert first.count('<li class="durable-row durable-step-') == 200
    assert ("step-200-" in first, "step-201-" in first) == (True, False)
    assert "step-450-" in last
    assert len(site.get("/api/durable/run/long").json()["steps"]) == 450


@pytest.mark.parametrize("path", ["/durable/run/run-1", "/durable/panel/run-1"])
def test_a_page_of_a_run_waits_for_redis_twice(
    site: Site, garden: Garden, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    watched = Waits().install(monkeypatch)
    garden.plant("run-1", done("a", garden.now, 1))
    site.get(path)

    with watched.counted(2):
        assert site.get(path).status_code == 200


def test_the_api_tells_the_same(site: Site, garden: Garden) -> None:
    for number in range(3):
        garden.plant(f"run-{number}", call=([number], {}))

    first = site.get("/api/durable/runs?limit=2").json()
    rest = site.get("/api/durable/runs", params={"limit": 2, "cursor": first["cursor"]}).json()

    assert [run["id"] for run in first["runs"] + rest["runs"]] == ["run-2", "run-1", "run-0"]
    assert (rest["cursor"], rest["counts"]) == (None, {"SUCCESS": 3})
    assert first["runs"][0]["args"] == [2]
    assert site.get("/api/durable/run/run-1").json()["state"] == "SUCCESS"


def test_what_users_have_written_is_escaped(site: Site, garden: Garden) -> None:
    actions = json.dumps({"what": "retry", "by": HOSTILE, "at": 1})
    garden.plant_written(HOSTILE, {"owner": HOSTILE, "actions": actions})
    path = requests.utils.quote(HOSTILE, safe="")

    for address in ("/durable", f"/durable?text={path}&task={path}&cursor=1-{path}", f"/durable/run/{path}",
                    f"/durable/panel/{path}", f"/durable/run/no{path}", f"/durable?state={path}"):  # fmt: skip
        answer = site.get(address)
        assert "<script>hacked" not in answer.text
        assert answer.status_code in (200, 400, 404)
    assert site.get(f"/api/durable/run/{path}").json()["error"] == f"{HOSTILE}: {HOSTILE}"


def test_what_is_no_unicode_is_shown_with_escapes(site: Site, garden: Garden) -> None:
    error = ("FileNotFoundError", "invoice-\udcff.pdf")
    garden.plant(
        "bad",
        done("read", garden.now, 1, "invoice-\udcff.pdf"),
        status="failed",
        error=error,
        fields={"attributes": attributes_text({"file": "invoice-\udcff.pdf"})},
    )

    for path in ("/durable", "/durable/run/bad", "/durable/panel/bad"):
        answer = site.get(path)
        assert answer.status_code == 200
        assert "invoice-\\udcff.pdf" in answer.text


def test_a_restart_that_nobody_has_begun_has_a_page(site: Site, garden: Garden) -> None:
    garden.plant("old", done("charge", garden.now, 1), status="failed")

    new = site.post("/api/durable/run/old/restart").json()["new_id"]

    for path in (f"/durable/run/{new}", f"/durable/panel/{new}"):
        answer = site.get(path)
        assert answer.status_code == 200
        assert "Nothing is recorded yet." in answer.text


def test_a_text_in_place_of_the_arguments_is_shown(redis_url: str, redis_client: redis.Redis) -> None:
    with app_at(redis_url, durable_redact=lambda _task, _where, _value: "***") as app:
        garden = Garden(store_of(app), redis_client, int(time.time() * 1000))
        with site_of(app, basic_auth=[":".join(ANN)]) as site:
            site.session.auth = ANN
            garden.plant("good", call=(["hidden"], {"key": "hidden"}))

            answer = site.get("/durable")

    assert answer.status_code == 200
    assert ">***, ***<" in answer.text
    assert "hidden</code>" not in answer.text


def test_the_counts_are_those_of_the_task_and_none_where_nobody_counts(site: Site, garden: Garden) -> None:
    for number in range(3):
        garden.plant(f"order{number}")
    garden.plant("refund", task="shop.refund")

    def counts(query: str) -> list[str]:
        return re.findall(r"<b>(\d+)</b>", site.get(f"/durable{query}").text)

    assert (counts(""), counts("?task=shop.refund")) == (["4", "4"], ["1", "1"])
    assert counts("?text=order1") == counts("?since=2020-01-01T00:00") == []
    assert "No runs match." in site.get("/durable?task=nobody").text


def test_of_many_attempts_the_last_ones_are_shown_and_the_others_at_a_click(site: Site, garden: Garden) -> None:
    earlier = {f"attempt.{number}": f"retry {garden.now} {garden.now + 1} a:b:1 0 0 x" for number in range(1, 30)}
    garden.plant("tried", fields={"attempt": "30", **earlier})

    def attempts(query: str) -> int:
        return site.get(f"/durable/run/tried{query}").text.count(">attempt</span>")

    assert (attempts(""), attempts("?attempts=all")) == (12, 30)
    assert "18 earlier attempts" in site.get("/durable/run/tried").text


def test_a_damaged_journal_hides_no_other_run(site: Site, garden: Garden, app: Celery) -> None:
    garden.plant("good")
    garden.plant("damaged", fields={"created": "soon"})

    answer = site.get("/durable")

    assert answer.status_code == 200
    assert "/durable/run/good" in answer.text
    assert "the journal of task damaged is damaged: ValueError" in answer.text
    assert [run.state for run in Runs(app).list(task="shop.order")] == ["SUCCESS", "SUCCESS"]


def test_the_next_page_is_of_the_same_time(site: Site, garden: Garden) -> None:
    for number in range(2):
        garden.plant(f"run-{number}")

    assert "since=2020-01-31T12%3A00%3A30%2B00%3A00" in site.get("/durable?limit=1&since=2020-01-31T12:00:30Z").text


def test_a_task_without_a_journal_has_an_empty_panel(site: Site) -> None:
    assert (site.get("/durable/panel/nobody").status_code, site.get("/durable/panel/nobody").text) == (200, "")


def test_the_list_of_tasks_says_what_the_journal_says(site: Site, garden: Garden) -> None:
    told = {"killed": "STARTED", "asleep": "STARTED", "woken": "SUSPENDED", "plain": "STARTED", "again": "RETRY"}
    garden.plant("killed", status="failed")
    garden.plant("asleep", status="suspended")
    garden.plant("woken", status="running")
    garden.plant("again", status="running")
    state = site.flower.events.state
    for task_id, word in told.items():
        event = {"uuid": task_id, "hostname": "w", "local_received": 1, "timestamp": 1, "clock": 1, "utcoffset": 0}
        state.event({**event, "pid": 1, "type": "task-received", "name": "shop.order"})
        kind = "task-retried" if word == "RETRY" else "task-started"
        state.event({**event, "pid": 1, "type": kind, "state": word})
    asked = "draw=1&start=0&length=10&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"

    rows = site.get(f"/tasks/datatable?{asked}").json()["data"]

    expected = {"killed": "FAILURE", "asleep": "SUSPENDED", "woken": "STARTED", "plain": "STARTED", "again": "RETRY"}
    assert {row["uuid"]: row["state"] for row in rows} == expected
    assert {task_id: state.tasks[task_id].state for task_id in told} == expected


# -- what is done ------------------------------------------------------------------------------------------------------


def test_a_sleeper_is_woken_and_the_journal_says_by_whom(site: Site, garden: Garden, app: Celery) -> None:
    garden.plant("asleep", status="suspended")

    answer = site.post("/api/durable/run/asleep/wake")

    assert (answer.status_code, answer.json()) == (200, {"id": "asleep", "what": "wake", "done": True, "said": "woken"})
    run = Runs(app).get("asleep")
    assert [(action.what, action.by) for action in run.actions] == [("wake", "ann")]
    assert run.until is not None
    assert run.until.timestamp() * 1000 <= garden.now + 60_000


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/durable/run/nobody/retry", 404, "task nobody has no journal"),
        ("/api/durable/run/good/retry", 409, "task good has not ended in FAILURE, it is SUCCESS"),
        ("/api/durable/run/good/wake", 409, "task good does not wait"),
        ("/api/durable/run/good/cancel", 409, "task good has ended already"),
        ("/api/durable/run/good/destroy", 404, "nobody can destroy a run; what there is: retry, wake, restart"),
    ],
)
def test_what_a_run_forbids_is_refused_in_a_sentence(
    site: Site, garden: Garden, path: str, status: int, said: str
) -> None:
    garden.plant("good")

    answer = site.post(path)

    assert answer.status_code == status
    assert said in answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_a_broker_that_is_away_is_told_in_a_sentence(
    site: Site, garden: Garden, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    garden.plant("bad", status="failed")

    def unreachable(*_args: Any, **_options: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(app, "send_task", unreachable)

    answer = site.post("/api/durable/run/bad/retry")

    assert (answer.status_code, answer.text) == (503, "timed out")


def test_a_damaged_run_can_be_cancelled_as_in_the_shell(site: Site, garden: Garden, app: Celery) -> None:
    garden.plant("damaged", status="suspended", fields={"step:1": '{"name":'})

    assert site.post("/api/durable/run/damaged/cancel").status_code == 200


@pytest.mark.parametrize(("query", "said"), [("sate=FAILURE", "sate is no filter"), ("text=", "text is empty")])
def test_a_program_that_misspells_a_filter_does_not_get_all_runs(site: Site, query: str, said: str) -> None:
    answer = site.get(f"/api/durable/runs?{query}")

    assert (answer.status_code, said in answer.text) == (400, True)


def test_what_a_request_leaves_open_is_left_out(site: Site, garden: Garden) -> None:
    garden.plant("asleep", status="suspended")

    assert site.post("/api/durable/run/asleep/cancel", {"from_step": None}).status_code == 200


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"data": {"by": "mallory"}, "json": None}, 415, "application/json, got application/x-www-form-urlencoded"),
        ({"data": b"{}", "json": None, "headers": {"Content-Type": "text/plain"}}, 415, "got text/plain"),
        ({"data": b"", "json": None}, 415, "got nothing"),
        ({"data": b"{", "json": None, "headers": {"Content-Type": "application/json"}}, 400, "no JSON"),
        ({"data": b"[" * 100_000, "json": None, "headers": {"Content-Type": "application/json"}}, 400, "no JSON"),
        ({"json": ["x"]}, 400, "must be an object of texts"),
        ({"json": {"by": "mallory"}}, 400, "cancel takes no by; what it takes: nothing"),
    ],
)
def test_a_request_that_is_wrong_does_nothing(
    site: Site, garden: Garden, app: Celery, given: dict[str, Any], status: int, said: str
) -> None:
    garden.plant("asleep", status="suspended")

    answer = site.post("/api/durable/run/asleep/cancel", **given)

    assert answer.status_code == status
    assert said in answer.text
    assert Runs(app).get("asleep").actions == ()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=DONE", "state must be one of STARTED, RETRY"),
        ("since=soon", "is no time: write it as 2030-01-31T12:00:00+00:00"),
        ("limit=many", "limit must be a number"),
        ("limit=" + "9" * 5_000, "limit must be a number"),
        ("limit=0", "limit must be from 1 to 1,000"),
        ("cursor=x", "cursor must be that of a page of runs"),
        ("cursor=%C2%B2-x", "cursor must be that of a page of runs"),
        ("cursor=" + "9" * 5_000 + "-x", "cursor must be that of a page of runs"),
        ("since=0001-01-01T00:00:00%2B05:00", "is no time: write it as"),
        ("attribute=order", "an attribute is written as name=value"),
        ("attribute=%3Do1", "an attribute is written as name=value"),
    ],
)
def test_a_filter_that_cannot_be_read_is_told(site: Site, query: str, said: str) -> None:
    for path in ("/durable", "/api/durable/runs"):
        answer = site.get(f"{path}?{query}")
        assert answer.status_code == 400
        assert said in answer.text
        assert "Traceback" not in answer.text


def test_a_plus_that_an_address_has_lost_is_found_again(site: Site, garden: Garden) -> None:
    garden.plant("good")

    for since, found in (("2020-01-01T00:00:00+02:00", ["good"]), ("2999-01-01T00:00:00+0000", [])):
        runs = site.get(f"/api/durable/runs?since={since}").json()["runs"]
        assert [run["id"] for run in runs] == found


def test_a_filter_may_find_nothing_and_a_run_may_be_unknown(site: Site, garden: Garden) -> None:
    garden.plant("good")

    assert "No runs match." in site.get("/durable?since=2999-01-01T00:00").text
    assert site.get("/api/durable/runs?since=2999-01-01T00:00:00Z").json()["runs"] == []
    for path in ("/durable/run/nobody", "/api/durable/run/nobody"):
        answer = site.get(path)
        assert answer.status_code == 404
        assert "task nobody has no journal" in answer.text


# -- to whom -----------------------------------------------------------------------------------------------------------

CLOSED = "Flower only shows runs"


def test_without_users_pages_are_shown_and_actions_are_closed(
    app: Celery, garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWER_UNAUTHENTICATED_API", raising=False)
    garden.plant("asleep", status="suspended")
    with site_of(app) as site:
        page = site.get("/durable/run/asleep")
        assert page.status_code == 200
        assert CLOSED in page.text
        assert "data-durable-verb" not in page.text
        assert site.get("/api/durable/runs").status_code == 401
        assert site.post("/api/durable/run/asleep/wake").status_code == 401

        monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
        assert "data-durable-verb" in site.get("/durable/run/asleep").text
        assert site.post("/api/durable/run/asleep/wake").status_code == 200
    [action] = Runs(app).get("asleep").actions
    assert action.by == ""


def test_a_wrong_password_opens_nothing(site: Site, garden: Garden) -> None:
    garden.plant("asleep", status="suspended")
    site.session.auth = ("ann", "wrong")

    assert site.get("/durable").status_code == 401
    assert site.get("/durable/run/asleep").status_code == 401
    assert site.get("/api/durable/run/asleep").status_code == 401
    assert site.post("/api/durable/run/asleep/wake").status_code == 401


def test_read_only_means_read_only(app: Celery, garden: Garden) -> None:
    garden.plant("asleep", status="suspended")
    with site_of(app, basic_auth=[":".join(ANN)], read_only=True) as site:
        site.session.auth = ANN
        assert "--read-only" in site.get("/durable/run/asleep").text
        answer = site.post("/api/durable/run/asleep/wake")
        assert (answer.status_code, "--read-only" in answer.text) == (403, True)
        assert site.get("/api/durable/run/asleep").status_code == 200


def test_a_session_needs_the_token_that_no_other_site_knows(app: Celery, garden: Garden) -> None:
    garden.plant("asleep", status="suspended")
    with site_of(app, auth="ann@example.com", url_prefix="ops") as site:
        assert site.get("/durable").status_code == 302
        assert site.post("/api/durable/run/asleep/wake").status_code == 403

        user = create_signed_value(SECRET, "user", "ann@example.com").decode()
        site.session.cookies.set("user", user)
        page = site.get("/durable/run/asleep")
        assert page.status_code == 200
        assert 'data-durable-root="/ops/durable"' in page.text
        assert site.post("/api/durable/run/asleep/wake").status_code == 403
        token = {"X-XSRFToken": site.session.cookies["_xsrf"]}
        assert site.post("/api/durable/run/asleep/wake", headers=token).status_code == 200
        assert site.get("/durable/static/durable.css").status_code == 200
    [action] = Runs(app).get("asleep").actions
    assert action.by == "ann@example.com"


# -- nobody answers ----------------------------------------------------------------------------------------------------


def test_a_redis_that_is_down_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_REDIS_PATIENCE", 0.1)
    url = f"redis://127.0.0.1:{free_port()}/0"
    with app_at(url, durable_lease=1) as app, site_of(app, basic_auth=[":".join(ANN)]) as site:
        site.session.auth = ANN
        for path in ("/durable", "/durable/run/x", "/api/durable/runs", "/api/durable/run/x"):
            answer = site.get(path)
            assert answer.status_code == 503
            assert "Redis" in answer.text
            assert "Traceback" not in answer.text
        assert site.post("/api/durable/run/x/retry").status_code == 503


def test_a_flower_without_an_app_says_what_it_lacks() -> None:
    app = Celery("bare", broker="memory://", set_as_current=False)
    with site_of(app, basic_auth=[":".join(ANN)]) as site:
        site.session.auth = ANN
        for path in ("/durable", "/durable/run/x", "/api/durable/runs"):
            answer = site.get(path)
            assert answer.status_code == 503
            assert "start Flower with your app" in answer.text


def test_a_journal_of_a_newer_version_is_told(site: Site, garden: Garden) -> None:
    garden.plant("newer", fields={"v": "99"})

    answer = site.get("/durable/run/newer")

    assert answer.status_code == 500
    assert "upgrade" in answer.text
    assert "Traceback" not in answer.text
