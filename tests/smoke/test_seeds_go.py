"""The Go documentation that this library is held to (seeds 000, 001 and 002), in Python, on real workers.

Each test names the seed and the line that it proves. What the Go and the Python texts say alike is in
`test_seeds_python`; the names of steps in traces and the propagation of traces are in `test_tracing`.
"""

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from celery_durable import ConfigurationError, ContextInStepError, RetriesExhausted, TerminalError
from tests.smoke import effects
from tests.smoke.apps import seeds
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import countdowns, journal, logged, steps, wait_for_countdowns, wait_until_logged
from tests.waiting import eventually

LONG = 20
"""Seconds for a run with a few retries, on a busy machine."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.seeds"


class Api(ThreadingHTTPServer):
    """An HTTP service on this machine: it counts its requests, and charges once per idempotency key."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ApiRequest)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.requests: Counter[str] = Counter()
        self.charges: Counter[str] = Counter()
        self.failures = 0
        """How many of the next requests are answered with 503."""


class ApiRequest(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self._answer({"served": sum(self.server.requests.values()) + 1})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Idempotency-Key", "")
        if key not in self.server.charges:
            self.server.charges[key] = len(self.server.charges) + 1
        self._answer({"charged": self.server.charges[key]})

    def _answer(self, body: dict[str, int]) -> None:
        self.server.requests[self.command] += 1
        failing = self.server.failures > 0
        self.server.failures -= failing
        self.send_response(503 if failing else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


needs_http = pytest.mark.local_nodes(reason="the HTTP service is one of this machine")


# -- Run, and the operations to be wrapped -----------------------------------------------------------------------------


def test_the_result_of_a_database_request_is_stored_and_replayed(worker: Worker) -> None:
    """000:9-18, 001:16, 001:190-199, 002:6-12."""
    with closing(seeds.database()) as connection:
        connection.execute("CREATE TABLE users (id INTEGER, name TEXT)")
        connection.execute("INSERT INTO users VALUES (1, 'Alice')")
        connection.commit()

    assert seeds.query_a_database.delay(1).get(timeout=LONG) == {"id": "1", "name": "Alice"}
    assert effects.count("query_user", 1) == 1
    assert effects.keys("found") == ["Alice"] * 2


def test_a_failed_database_request_is_repeated_until_it_succeeds(worker: Worker) -> None:
    """000:32, 001:95-110: the row comes later."""
    with closing(seeds.database()) as connection:
        connection.execute("CREATE TABLE users (id INTEGER, name TEXT)")
        connection.commit()
        result = seeds.query_a_database.delay(1)
        eventually(lambda: effects.count("query_user", 1) >= 3)
        connection.execute("INSERT INTO users VALUES (1, 'Alice')")
        connection.commit()

    assert result.get(timeout=LONG)["name"] == "Alice"
    failed = effects.count("query_user", 1) - 1
    eventually(lambda: len(countdowns(worker, result.id)) == failed, what=f"{failed} retries in the log")


@needs_http
@pytest.mark.parametrize("task", ["call_an_http_api", "call_an_http_api_async"])
def test_an_http_request_is_made_once_unless_it_fails(worker: Worker, api: Api, task: str) -> None:
    """000:5, 001:15, 001:20, 001:26-37, 001:204-215: persistence and replay safety (001:41-42)."""
    assert getattr(seeds, task).delay(api.url).get(timeout=LONG) == 1
    assert api.requests == {"GET": 1}

    api.failures = 2
    assert getattr(seeds, task).delay(api.url).get(timeout=LONG) == 4
    assert api.requests == {"GET": 4}


@needs_http
def test_a_step_that_returns_nothing_is_not_repeated_either(worker: Worker, api: Api) -> None:
    """000:27 (`restate.Void{}`), 001:83-93, 002:14."""
    assert seeds.post_webhook.delay(api.url).get(timeout=LONG) == "posted"
    assert api.requests == {"POST": 1}


def test_the_current_time_is_recorded_by_a_step(worker: Worker) -> None:
    """001:19."""
    seeds.time_spent.delay().get(timeout=LONG)

    first, second = effects.keys("wrapped clock")
    assert first == second


@pytest.mark.parametrize("kind", ["string", "model", "dataclass", "slice", "void"])
def test_any_serializable_payload_comes_back_as_it_was(worker: Worker, kind: str) -> None:
    """000:25-27, 001:57-93, 002:14: a string, a struct (model or dataclass), a slice, nothing."""
    given = seeds.return_payload.delay(kind).get(timeout=LONG)

    assert given == repr(seeds.PAYLOADS[kind][0]())
    assert effects.keys("given") == [given] * 2
    assert effects.count("payload", kind) == 1


# -- isolation: the run context ----------------------------------------------------------------------------------------


def test_inside_a_step_the_run_context_tells_what_may_be_known(worker: Worker) -> None:
    """000:20-21, 001:43-53, 002:13: name, execution, task, request, logger, idempotency key; only there."""
    result = seeds.run_context.delay()

    seen = result.get(timeout=LONG)
    assert (seen["name"], seen["attempt"], seen["task_id"], seen["retries"]) == ("look", 2, result.id, 1)
    assert seen["outside"] == "ContextClosedError"
    first, second = effects.keys("look")
    assert first == second != seen["other_key"]
    assert uuid.UUID(first).version == 4
    wait_until_logged(worker, "seen from inside of look", times=2)


# -- error handling and retries ----------------------------------------------------------------------------------------


def test_the_go_options_under_their_python_names(durable: DurableSetup, worker: Worker) -> None:
    """000:36-50, 002:16-28: 100 ms, factor 2, a name; the journal shows the name (000:47)."""
    result = seeds.my_db_request.delay(["fail", "fail", "ok"])

    assert result.get(timeout=LONG) == "db 3"
    wait_for_countdowns(worker, result.id, [0.1, 0.2])
    assert steps(durable.redis, result.id) == [("my_db_request", "done", 3)]


def test_after_the_maximum_duration_a_terminal_error_is_thrown(worker: Worker) -> None:
    """000:41-42, 000:56-57, 001:144, 002:20-21, 002:33-34: 10 seconds are over long before nine hours."""
    result = seeds.my_db_request.delay(["fail", "closed"])

    with pytest.raises(TerminalError) as raised:
        result.get(timeout=LONG)
    assert isinstance(raised.value, RetriesExhausted)
    assert raised.value.attempts == effects.count("db", result.id) == 2
    assert raised.value.elapsed.total_seconds() < 10


def test_a_custom_retry_policy_with_an_interval_of_a_second(worker: Worker) -> None:
    """001:129-142."""
    result = seeds.my_operation.delay(["fail", "ok"])

    assert result.get(timeout=LONG) == "operation 2"
    wait_for_countdowns(worker, result.id, [1.0])
    first, second = effects.hits("operation", result.id)
    assert second.at - first.at >= 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("retry_interval", "initial_retry_interval"), ("retry_interval_multiplier", "retry_interval_factor")],
)
def test_an_option_that_does_not_exist_is_refused_with_the_right_name(worker: Worker, wrong: str, right: str) -> None:
    """001:139-140 (`WithRetryInterval`, `WithRetryIntervalMultiplier`), 001:225."""
    result = seeds.names_that_do_not_exist.delay(wrong)

    with pytest.raises(ConfigurationError, match=f"did you mean '{right}'"):
        result.get(timeout=LONG)
    assert effects.count("operation") == 0
    assert not countdowns(worker, result.id)


def test_a_terminal_error_stops_retries_and_keeps_its_code(worker: Worker) -> None:
    """001:97-127: errors are retried unless they are wrapped in a `TerminalError(err, 400)`."""
    assert seeds.distinguish_errors.delay(recoverable=True).get(timeout=LONG) == "data 3"
    with pytest.raises(TerminalError, match="gone") as raised:
        seeds.distinguish_errors.delay(recoverable=False).get(timeout=LONG)

    assert raised.value.status_code == 400
    assert effects.count("fetch", key=True) == 3
    assert effects.count("fetch", key=False) == 1


def test_unrecoverable_errors_can_be_named_in_the_options(worker: Worker) -> None:
    """001:120: `non_retryable` says which ones; the replay raises the same."""
    outcome = seeds.non_retryable_errors.delay().get(timeout=LONG)

    assert outcome == ["UnrecoverableError", "gone", 500]
    assert effects.count("fetch") == 1
    assert effects.keys("caught") == ["UnrecoverableError"] * 2


# -- context propagation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["with_value", "with_value_async"])
def test_values_of_the_context_are_visible_inside_steps(worker: Worker, task: str) -> None:
    """000:71-107: WithValue is a contextvar; in sync and async steps, and in the thread of a sync one."""
    assert getattr(seeds, task).delay().get(timeout=LONG) == ["user-123"] * 3


def test_values_of_the_context_end_with_the_task(durable: DurableSetup) -> None:
    """000:107: what one task's steps see is not what the next task's see, in the same process."""
    durable.start_worker(concurrency=1)
    seeds.with_value_async.delay().get(timeout=LONG)

    assert seeds.value_of_another_task.delay().get(timeout=LONG) == "nobody"


# -- deterministic helpers ---------------------------------------------------------------------------------------------


def test_all_that_is_drawn_is_the_same_on_retries(worker: Worker) -> None:
    """000:114-134, 001:146-184, 002:40-53: uuid, uint64, float64, a source for other generators."""
    first, second = seeds.draw.delay(), seeds.draw.delay()
    drawn, other = first.get(timeout=LONG), second.get(timeout=LONG)

    assert sorted(effects.keys("drawn")) == sorted([json.dumps(drawn)] * 3 + [json.dumps(other)] * 3)
    assert all(drawn[name] != other[name] for name in ("uuids", "uint64", "float64", "fed", "named"))
    assert drawn["uuids"][0] != drawn["uuids"][1]
    assert all(uuid.UUID(one).version == 4 for one in drawn["uuids"])
    assert 0 <= drawn["uint64"] < 2**64
    assert all(0 <= one < 1 for one in [drawn["float64"], *drawn["between"]])
    assert len(set(drawn["between"])) == 100


def test_uuids_and_numbers_do_not_depend_on_each_other(worker: Worker) -> None:
    """000:119, 000:131, 002:45: one stream for both would make them so."""
    seeds.draw_uuids_and_numbers.delay().get(timeout=LONG)

    assert len(set(effects.keys("uuid"))) == len(set(effects.keys("number"))) == 1
    assert effects.count("uuid") == effects.count("number") == 2


# -- common patterns ---------------------------------------------------------------------------------------------------


def test_an_external_service_with_a_retry_policy(durable: DurableSetup, worker: Worker) -> None:
    """001:218-228."""
    result = seeds.payment.delay(4200, "tok_visa")

    assert result.get(timeout=LONG) == {"number": 3, "amount": 4200}
    assert effects.count("charge", "tok_visa") == 3
    wait_for_countdowns(worker, result.id, [0.5, 1.0])
    assert steps(durable.redis, result.id) == [("payment-charge", "done", 3)]


@needs_http
def test_an_idempotent_external_call_charges_once(worker: Worker, api: Api) -> None:
    """001:230-239, 001:159, 000:116: three requests whose replies were lost, one charge."""
    assert seeds.idempotent_payment.delay(api.url).get(timeout=LONG) == 1
    assert api.requests == {"POST": 3}
    assert len(api.charges) == 1


# -- best practices ----------------------------------------------------------------------------------------------------


def test_what_is_not_wrapped_is_done_again_by_every_attempt(worker: Worker) -> None:
    """001:243, 001:5 (always use Run); 000:5, 002:2, 003:5, 004:1 (must be wrapped)."""
    seeds.always_use_run.delay().get(timeout=LONG)

    assert effects.keys("wrapped") == ["data 1", "data 1"]
    assert effects.keys("unwrapped") == ["data 1", "data 2"]


def test_small_steps_are_repeated_alone_large_ones_as_a_whole(worker: Worker) -> None:
    """001:244."""
    seeds.keep_run_functions_small.delay().get(timeout=LONG)

    assert (effects.count("reserve"), effects.count("send")) == (1, 2)
    assert (effects.count("reserve in one"), effects.count("send in one")) == (2, 2)


def test_a_named_operation_is_seen_in_log_and_journal(durable: DurableSetup, worker: Worker) -> None:
    """001:245, 001:279-289, 000:47-49: recorded and failed are logged once each, nothing on replay."""
    result = seeds.fetch_user_data.delay("alice")
    assert result.get(timeout=LONG) == "alice"

    assert steps(durable.redis, result.id) == [("fetch-user-data", "done", 2)]
    wait_until_logged(worker, "succeeded")
    assert logged(worker, result.id, "step 'fetch-user-data' recorded (")
    assert not logged(worker, "step 'fetch-user-data' recorded (", times=2)
    failed = (result.id, "step 'fetch-user-data' failed (execution 1 of 3)", "users are away", "next try in 0.02 s")
    assert logged(worker, *failed)
    assert not logged(worker, "step 'fetch-user-data' failed", times=2)


def test_retriable_and_terminal_errors_are_told_apart(worker: Worker) -> None:
    """001:246."""
    retried = seeds.without_options.delay(["fail", "refuse"])

    with pytest.raises(TerminalError, match="no such account"):
        retried.get(timeout=LONG)
    assert effects.count("write", retried.id) == 2


def test_each_operation_has_its_own_timeout(worker: Worker) -> None:
    """001:249."""
    attempts = seeds.timeouts_by_criticality.delay().get(timeout=LONG)

    assert attempts == {"newsletter": 1, "invoice": 4}
    assert (effects.count("newsletter"), effects.count("invoice")) == (1, 4)


# -- what not to do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        pytest.param("uuids_bad_and_good", id="001:254-258 UUID"),
        pytest.param("random_bad_and_good", id="001:260-265 random"),
    ],
)
def test_only_the_good_way_gives_the_same_on_each_replay(worker: Worker, task: str) -> None:
    """001:251-265, 001:247 (use deterministic helpers)."""
    getattr(seeds, task).delay().get(timeout=LONG)

    assert len(set(effects.keys("bad"))) == 2
    assert len(set(effects.keys("good"))) == 1
    assert effects.count("good") == 2


def test_the_parent_context_in_a_step_is_an_error(worker: Worker) -> None:
    """001:267-270, 001:248 (avoid nested context)."""
    with pytest.raises(ContextInStepError, match="step 'bad'"):
        seeds.parent_context_bad.delay().get(timeout=LONG)
    assert effects.count("bad") == 1


def test_a_step_that_uses_the_run_context_only_is_fine(worker: Worker) -> None:
    """001:272-276."""
    assert seeds.parent_context_good.delay().get(timeout=LONG) == "data 1 for good"
    assert effects.count("fetch_data") == 1


def test_every_uuid_is_shown_in_the_journal(durable: DurableSetup, worker: Worker) -> None:
    """001:43, 001:289: what an operator looks for is there as text."""
    result = seeds.draw.delay()
    drawn = result.get(timeout=LONG)

    fields = journal(durable.redis, result.id)
    assert [fields["uuid:1"], fields["uuid:2"]] == drawn["uuids"]
    assert fields["seed"]
