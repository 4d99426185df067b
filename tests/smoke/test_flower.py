"""Runs in Flower, in a real browser: an operator sees them, and sends them on their way by a click."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import requests
from celery import Celery
from celery.app.utils import find_app
from playwright.sync_api import Browser, Page, Route, expect

from celery_durable import Runs
from celery_durable.app.store import store_of
from tests import leftovers, processes
from tests.planting import Garden, done, shop
from tests.processes import Process
from tests.servers import RedisServer
from tests.smoke import browser as browsers
from tests.smoke import effects
from tests.smoke.apps import operate
from tests.smoke.conftest import forget_connections
from tests.smoke.flower import LOGIN, Flower
from tests.waiting import eventually

APP = "tests.smoke.apps.operate"
CONF = f"--conf={Path(__file__).with_name('flowerconfig.py')}"
HOUR = 3600
CROWD = 10_000
ENTRIES = 5_000
HOSTILE = "<img src=x onerror=\"document.body.dataset.hacked='yes'\">"
PICTURES = os.environ.get("DURABLE_PICTURES")
"""A folder into which this test puts pictures of the pages, for the documentation."""
OLDER = sorted(Path(sys.prefix).glob("flower-*"))
"""Older versions of Flower, which `make test` installs beside the newest one."""


@pytest.fixture(autouse=True, scope="module")
def nothing_left_by_this_file() -> Iterator[None]:
    """What these tests share ends with the last of them."""
    before = processes.alive()
    yield
    leftovers.check_processes(expected=before)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """A browser has processes as it likes, so that a single test is not asked what it has left."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server
        leftovers.check_journals(server)


@pytest.fixture(scope="module")
def env(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("effects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(effects.FOLDER_VARIABLE, str(folder))
        yield {
            "CELERY_BROKER_URL": server.url(0),
            "CELERY_RESULT_BACKEND": server.url(1),
            effects.FOLDER_VARIABLE: str(folder),
        }


@pytest.fixture(scope="module")
def app(server: RedisServer) -> Iterator[Celery]:
    app = find_app(APP)
    app.set_current()
    app.conf.update(broker_url=server.url(0), result_backend=server.url(1))
    yield app
    forget_connections(app)


@pytest.fixture(scope="module")
def garden(app: Celery, server: RedisServer) -> Iterator[Garden]:
    with redis.Redis.from_url(server.url(1), decode_responses=True) as client:
        yield Garden(store_of(app), client, int(time.time() * 1000))


@pytest.fixture(scope="module")
def worker(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [sys.executable, "-m", "celery", "-A", APP, "worker", "-E", "-n", "w@shop", "-c", "2"]
    worker = Process(command, log, env)
    try:
        yield log
    finally:
        worker.kill()


@pytest.fixture(scope="module")
def flower(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    flower = Flower("-A", APP, log=tmp_path_factory.mktemp("flower") / "log", env=env, options=[CONF])
    try:
        flower.wait_ready()
        yield flower
    finally:
        flower.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.opened() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, flower: Flower) -> Iterator[Page]:
    """A page of an operator who has logged in; it may neither fail nor ask another server."""
    user, password = LOGIN
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: request.url.startswith(flower.url("/")) or elsewhere.append(request.url))
    yield page
    context.close()
    assert (errors, elsewhere) == ([], [])


def click(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def reads(page: Page, state: str) -> None:
    expect(page.locator("#durable-state")).to_have_text(state, timeout=30_000)


def wait_for(app: Celery, task_id: str, state: str) -> None:
    eventually(lambda: app.AsyncResult(task_id).state == state, deadline=60, what=state)


# -- a click -----------------------------------------------------------------------------------------------------------


def test_a_failed_run_is_retried(page: Page, flower: Flower, app: Celery, worker: Path) -> None:
    failed_run = operate.fails_once.delay()
    wait_for(app, failed_run.id, "FAILURE")
    page.goto(flower.url("/durable?state=FAILURE"))
    page.get_by_role("link", name=operate.fails_once.name).first.click()
    reads(page, "FAILURE")

    click(page, "Retry")

    reads(page, "SUCCESS")
    [action] = Runs(app).get(failed_run.id).actions
    assert (action.what, action.by) == ("retry", "operator")


def test_it_is_retried_on_flowers_own_page_of_its_task(page: Page, flower: Flower, app: Celery, worker: Path) -> None:
    failed_run = operate.fails_once.delay()
    wait_for(app, failed_run.id, "FAILURE")
    eventually(lambda: flower.info(failed_run.id).get("state") == "FAILURE", what="the event")
    page.goto(flower.url(f"/task/{failed_run.id}"))
    expect(page.locator("#durable-panel")).to_contain_text("Journal")

    page.locator("#task-page header").get_by_role("button", name="Retry").click()

    reads(page, "SUCCESS")
    expect(page.locator("#durable-panel")).to_contain_text("done")
    eventually(lambda: flower.info(failed_run.id)["state"] == "SUCCESS", what="Flower to know it")


def test_a_sleeper_is_woken(page: Page, flower: Flower, app: Celery, worker: Path) -> None:
    asleep = operate.sleeps.delay(HOUR)
    wait_for(app, asleep.id, "SUSPENDED")
    page.goto(flower.url(f"/durable/run/{asleep.id}"))
    expect(page.locator("#durable-waits")).to_contain_text("the end of a sleep: 'pause', until")

    click(page, "Wake")

    reads(page, "SUCCESS")


def test_a_sleeper_is_cancelled(page: Page, flower: Flower, app: Celery, worker: Path) -> None:
    asleep = operate.sleeps.delay(HOUR)
    wait_for(app, asleep.id, "SUSPENDED")
    eventually(lambda: flower.info(asleep.id).get("state") == "SUSPENDED", what="Flower's own list to say so")
    page.goto(flower.url(f"/durable/run/{asleep.id}"))

    click(page, "Cancel")

    reads(page, "REVOKED")
    eventually(lambda: flower.info(asleep.id).get("state") == "REVOKED", what="Flower's own list to say so")


def test_an_ended_run_is_restarted_from_a_step(page: Page, flower: Flower, app: Celery, worker: Path) -> None:
    failed_run = operate.fails_once.delay()
    wait_for(app, failed_run.id, "FAILURE")
    page.goto(flower.url(f"/durable/run/{failed_run.id}"))

    click(page, "From this step")
    expect(page.locator("#durable-said")).to_contain_text("Restarted as")
    page.locator("#durable-said a").click()

    expect(page.locator(".durable-facts")).to_contain_text(failed_run.id)
    reads(page, "FAILURE")
    [action] = Runs(app).get(failed_run.id).actions
    assert (action.what, action.by) == ("restart", "operator")


def test_no_click_is_lost_before_the_script_has_come(page: Page, flower: Flower, garden: Garden) -> None:
    garden.plant("early", status="suspended")
    on_their_way: list[Route] = []

    def hold(route: Route) -> None:
        on_their_way.append(route)

    page.route("**/durable.js*", hold)
    page.goto(flower.url("/durable/run/early"), wait_until="commit")
    button = page.get_by_role("button", name="Cancel", exact=True)

    expect(button).to_be_disabled()
    eventually(lambda: page.title() and on_their_way, what="the question for the script")
    for route in on_their_way:
        route.continue_()

    click(page, "Cancel")
    expect(page.locator("#durable-said")).to_contain_text("Told to end")


def test_a_button_stays_closed_until_its_answer_has_come(page: Page, flower: Flower, garden: Garden) -> None:
    garden.plant("slow", status="suspended")
    on_their_way: list[Route] = []
    news: list[str] = []

    def hold(route: Route) -> None:
        on_their_way.append(route)

    page.route("**/api/durable/run/slow/wake", hold)
    page.on("response", lambda answer: answer.url.endswith("/durable/run/slow") and news.append(answer.url))
    page.goto(flower.url("/durable/run/slow"))
    click(page, "Wake")
    news.clear()

    eventually(lambda: page.title() and len(news) >= 2, what="the news that the page asks for meanwhile")
    garden.change("slow", due=1)
    eventually(lambda: page.title() and len(news) >= 4, what="news that say something else")
    expect(page.get_by_role("button", name="Wake", exact=True)).to_be_disabled()

    on_their_way[0].continue_()
    expect(page.locator("#durable-said")).to_contain_text("Woken")


def test_the_keyboard_stays_on_its_button_when_there_is_news(page: Page, flower: Flower, garden: Garden) -> None:
    garden.plant("watched", status="suspended", fields={"due": int(time.time() * 1000) + 600_000})
    page.goto(flower.url("/durable/run/watched"))
    waits, wake = page.locator("#durable-waits"), page.get_by_role("button", name="Wake", exact=True)
    before = waits.inner_text()

    wake.focus()
    expect(waits).not_to_have_text(before, use_inner_text=True)

    expect(wake).to_be_focused()


def test_a_refusal_is_said_on_the_page(page: Page, flower: Flower, garden: Garden) -> None:
    garden.plant("just-failed", status="failed", error=("Declined", "no money"))
    page.goto(flower.url("/durable/run/just-failed"))
    garden.change("just-failed", status="succeeded")

    click(page, "Retry")

    expect(page.locator("#durable-said")).to_contain_text("has not ended in FAILURE, it is SUCCESS")


# -- much --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(garden: Garden) -> None:
    garden.crowd(CROWD)


def test_an_operator_pages_through_ten_thousand_runs(page: Page, flower: Flower, crowd: None) -> None:
    page.goto(flower.url("/durable?task=shop.crowd1&limit=200"))
    seen: list[str] = []
    while True:
        seen += page.locator(".durable-run-name code").all_inner_texts()
        older = page.locator("#durable-older")
        if len(seen) >= 600 or not older.count():
            break
        with page.expect_navigation():
            older.click()

    assert len(seen) == len(set(seen)) == 600
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == f"crowd-{CROWD - 3:05}"
    expect(page.locator(".durable-states")).to_contain_text(re.compile(r"All\s+3,\d\d\d"))
    page.get_by_role("link", name="Newest").click()
    expect(page.locator(".durable-run-name code").first).to_have_text(seen[0])
    page.get_by_role("link", name="Clear").click()
    expect(page.locator(".durable-states")).to_contain_text(re.compile(r"All\s+10,\d\d\d"))


@pytest.fixture(scope="module")
def long_run(garden: Garden) -> None:
    steps = [done(f"step {number}", garden.now + number, 1, {"number": number}) for number in range(1, ENTRIES + 1)]
    garden.plant("long", *steps)


def test_a_journal_of_five_thousand_entries_is_shown_in_parts(page: Page, flower: Flower, long_run: None) -> None:
    page.goto(flower.url("/durable/run/long"))
    expect(page.locator(".durable-name").get_by_text("step 200", exact=True)).to_be_visible()
    expect(page.get_by_text("1 to 200 of 5,000")).to_be_visible()

    page.get_by_role("link", name="Last").click()

    expect(page.locator(".durable-name").get_by_text("step 5000", exact=True)).to_be_visible()


@pytest.mark.parametrize("path", ["/durable", "/durable/run/long"])
def test_the_first_byte_does_not_keep_anybody_waiting(flower: Flower, crowd: None, long_run: None, path: str) -> None:
    """The bound is that of a machine that is busy with other tests; see docs/operate.md for what it takes."""

    def first_byte() -> float:
        began = time.perf_counter()
        with requests.get(flower.url(path), auth=LOGIN, timeout=30, stream=True) as answer:
            answer.raise_for_status()
            return time.perf_counter() - began

    assert min(first_byte() for _ in range(5)) < 1.5


# -- looks -------------------------------------------------------------------------------------------------------------


def test_what_users_have_written_is_text(page: Page, flower: Flower, garden: Garden) -> None:
    garden.plant_written(HOSTILE)
    page.goto(flower.url("/durable?state=FAILURE"))
    page.get_by_role("link", name=HOSTILE).first.click()

    expect(page.locator(".durable-name").get_by_text(HOSTILE).first).to_be_visible()
    assert page.evaluate("document.body.dataset.hacked") is None
    assert page.locator("img[src=x]").count() == 0


@pytest.fixture(scope="module")
def shop_ids(garden: Garden) -> list[str]:
    return list(shop(garden))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1_600])
def test_pages_fit_the_screen(page: Page, flower: Flower, shop_ids: list[str], scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    shown = {"runs": "/durable?task=shop.order&task=shop.refund", "run": f"/durable/run/{shop_ids[2]}"}
    for name, path in shown.items():
        page.goto(flower.url(path))
        expect(page.locator(".durable-card").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        light = page.evaluate("getComputedStyle(document.querySelector('.durable-card')).backgroundColor")
        assert (light == "rgb(255, 255, 255)") is (scheme == "light")
        if PICTURES and width > 400:
            page.set_viewport_size({"width": 1200, "height": 620})
            page.screenshot(path=Path(PICTURES) / f"{name}-{scheme}.png")


# -- other versions, other users ---------------------------------------------------------------------------------------


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Flower]]:
    started: list[Flower] = []

    def start(*options: str, path: Path | None = None) -> Flower:
        log = tmp_path / f"flower{len(started)}.log"
        more = {} if path is None else {"PYTHONPATH": str(path)}
        started.append(Flower("-A", APP, log=log, env={**env, **more}, options=[CONF, *options]))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.mark.skipif(not OLDER, reason="no older Flower is installed: make test installs it")
@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.name)
def test_an_older_flower_has_the_same_pages(
    browser: Browser, start: Callable[..., Flower], garden: Garden, path: Path
) -> None:
    flower = start("--url-prefix=ops", path=path)
    garden.plant(f"of-{path.name}", status="suspended")
    user, password = LOGIN
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()

    page.goto(flower.url("/ops/tasks"))
    page.get_by_role("link", name="Durable").click()
    page.locator(f"a[href='/ops/durable/run/of-{path.name}']").click()
    reads(page, "SUSPENDED")
    click(page, "Cancel")
    expect(page.locator("#durable-said")).to_contain_text("Told to end")

    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
    # An address that cannot be read is quoted, and not as HTML.
    answer = requests.get(flower.url("/ops/api/durable/run/%3Cb%3E%FF"), auth=LOGIN, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "text/plain; charset=UTF-8")
