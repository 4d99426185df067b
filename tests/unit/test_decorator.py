"""``@durable_task`` makes a Celery task, and refuses what cannot work when the function is decorated."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from celery import Celery, Task

from celery_durable import ConfigurationError, DurableContext, DurableTask, NoContextError, RetryPolicy, durable_task

if TYPE_CHECKING:
    from celery_durable import DurableContext as ContextOfTheChecker

MISSING_CONTEXT = "has no parameter for the durable context: write def"


def test_bare_and_with_options_make_a_durable_task(app: Celery) -> None:
    @durable_task
    def bare(ctx: DurableContext) -> None: ...

    @durable_task()
    def empty(ctx: DurableContext) -> None: ...

    @durable_task(name="decorator.named", time_limit=60)
    def named(ctx: DurableContext) -> None: ...

    assert {isinstance(task, DurableTask) for task in (bare, empty, named)} == {True}
    assert bare.name == f"{__name__}.bare"
    assert app.tasks["decorator.named"].name == named.name == "decorator.named"
    assert named.time_limit == 60


def test_a_task_made_before_its_app_belongs_to_it_all_the_same(app: Celery) -> None:
    @durable_task(name="decorator.early")
    def early(ctx: DurableContext) -> str:
        return "here"

    later = Celery("later", set_as_current=False)
    assert "decorator.early" in later.tasks
    later.close()


def test_a_durable_task_is_safe_against_a_lost_worker_unless_told_otherwise(app: Celery) -> None:
    @durable_task
    def safe(ctx: DurableContext) -> None: ...

    @durable_task(acks_late=False, reject_on_worker_lost=False)
    def bold(ctx: DurableContext) -> None: ...

    assert (safe.acks_late, safe.reject_on_worker_lost) == (True, True)
    assert (bold.acks_late, bold.reject_on_worker_lost) == (False, False)


def test_the_context_is_no_part_of_the_signature(app: Celery) -> None:
    @durable_task
    def plain(ctx: DurableContext, order: int, *, fast: bool = False) -> str:
        """What it does."""
        return "done"

    @durable_task(bind=True)
    def bound(self: Any, ctx: DurableContext, order: int) -> str:
        return "done"

    assert list(inspect.signature(plain.run).parameters) == ["order", "fast"]
    assert list(inspect.signature(bound.run).parameters) == ["order"]
    assert plain.__doc__ == "What it does."


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"slow": True})], ids=["too few", "too many", "unknown"]
)
def test_a_caller_whose_arguments_do_not_fit_learns_it_before_anything_is_sent(
    app: Celery, args: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    @durable_task
    def order(ctx: DurableContext, number: int) -> None: ...

    with pytest.raises(TypeError):
        order.apply_async(args, kwargs)


def no_parameters() -> None: ...


def only_keywords(*, ctx: DurableContext) -> None: ...


def only_rest(*args: Any) -> None: ...


def only_self(self: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "corrected"),
    [
        (no_parameters, {}, "def no_parameters(ctx, ...)"),
        (only_keywords, {}, "def only_keywords(ctx, ...)"),
        (only_rest, {}, "def only_rest(ctx, ...)"),
        (only_self, {"bind": True}, "def only_self(self, ctx, ...)"),
        (no_parameters, {"bind": True}, "def no_parameters(self, ctx, ...)"),
    ],
    ids=["none", "keyword only", "rest", "bind with self alone", "bind without any"],
)
def test_a_function_without_a_place_for_the_context_is_refused(function: Any, options: Any, corrected: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        durable_task(**options)(function)
    assert MISSING_CONTEXT in str(refused.value)
    assert corrected in str(refused.value)


@pytest.mark.parametrize("bind", [False, True])
def test_a_parameter_of_callers_in_the_place_of_the_context_is_an_error(bind: bool) -> None:
    def typed(order: str) -> None: ...
    def optional(order: Any = None) -> None: ...
    def bound(self: Any, order: int) -> None: ...
    def of_any_name(c: Any, order: str = "") -> None: ...

    for fun in [bound] if bind else [typed, optional]:
        with pytest.raises(ConfigurationError, match=r"parameter of .*, 'order', would be the durable context: write"):
            durable_task(bind=bind)(fun)
    if not bind:
        durable_task(of_any_name)


def needs_context(ctx: DurableContext) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("retentoin", "retention"),
        ("max_recovery", "max_recoveries"),
        ("task_retry_polcy", "task_retry_policy"),
        ("max_retrys", "max_retries"),
        ("ack_late", "acks_late"),
        ("rate_limits", "rate_limit"),
        ("durable_retention", "retention"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no option '{wrong}' .did you mean '{right}'"):
        durable_task(**{wrong: 1})(needs_context)


@pytest.mark.parametrize("wrong", ["lease", "durable_lease", "durable_max_broker_delay"])
def test_a_setting_of_the_app_is_no_option(wrong: str) -> None:
    setting = f"durable_{wrong.removeprefix('durable_')}"
    with pytest.raises(ConfigurationError, match=f"no option '{wrong}': {setting} is a setting of the app"):
        durable_task(**{wrong: 60})(needs_context)


@pytest.mark.parametrize("own", ["ctx", "auto_retry", "durable_settings", "durable_attempt_settings"])
def test_what_the_base_class_has_for_itself_is_no_option(own: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no option '{own}'"):
        durable_task(**{own: 1})(needs_context)


def test_an_attribute_of_the_base_class_is_an_option(app: Celery) -> None:
    class Billing(DurableTask[Any, Any]):
        abstract = True
        currency = "EUR"

    task = durable_task(base=Billing, currency="CHF")(needs_context)
    assert isinstance(task, Billing)
    assert task.currency == "CHF"
    with pytest.raises(ConfigurationError, match="did you mean 'currency'"):
        durable_task(base=Billing, curency="CHF")(needs_context)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue", "q"), ("routing_key", "r"), ("exchange", "e"), ("priority", 1), ("expires", 5),
        ("compression", "zlib"), ("serializer", "json"), ("delivery_mode", 1), ("time_limit", 5),
        ("soft_time_limit", 5), ("rate_limit", "1/s"), ("track_started", True), ("ignore_result", True),
        ("throws", (KeyError,)), ("typing", False),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_all_of_celerys_options_still_work(app: Celery, option: str, value: Any) -> None:
    task = durable_task(**{option: value})(needs_context)
    assert getattr(task, option) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retention", -1), ("failure_retention", "1 week"), ("max_recoveries", 1.5), ("inline_retry_limit", -1),
        ("max_entry_size", 0), ("durable_serializer", "nonsense"), ("task_retry_policy", {"max_attempts": 3}),
        ("max_retries", -1), ("retry_backoff", "fast"), ("retry_kwargs", {"eta": 1}), ("autoretry_for", ("KeyError",)),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_when_the_function_is_decorated(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError):
        durable_task(**{option: value})(needs_context)


@pytest.mark.parametrize(
    "celery", [{"max_retries": 3}, {"retry_backoff": True}, {"autoretry_for": (KeyError,)}], ids=str
)
def test_a_policy_and_celerys_own_options_are_a_conflict(celery: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        durable_task(task_retry_policy=RetryPolicy(max_attempts=3), **celery)(needs_context)
    assert "task_retry_policy" in str(refused.value)
    assert next(iter(celery)) in str(refused.value)


def test_a_policy_of_a_task_that_celery_retries_is_refused(app: Celery) -> None:
    def nothing() -> None: ...

    with pytest.raises(ConfigurationError, match=r"decorator.ruled: task_retry_policy is an option of @durable_task"):
        app._task_from_fun(  # noqa: SLF001  what app.task does, sooner or later
            nothing, name="decorator.ruled", base=DurableTask, task_retry_policy=RetryPolicy(max_attempts=2)
        )


def test_the_wrong_way_to_write_it_is_explained(app: Celery) -> None:
    for args, options in ((("name",), {}), ((needs_context, 5), {}), ((needs_context,), {"name": "x"})):
        with pytest.raises(ConfigurationError, match=r"write @durable_task or @durable_task\(option=\.\.\.\)"):
            durable_task(*args, **options)


def test_a_task_is_not_decorated_twice(app: Celery) -> None:
    task = durable_task(name="decorator.once")(needs_context)
    with pytest.raises(ConfigurationError, match="a task already"):
        durable_task(task)
    with pytest.raises(ConfigurationError, match="a task already"):
        durable_task(app.task(name="decorator.plain")(needs_context))


def test_the_base_class_alone_changes_nothing_of_a_task(app: Celery) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    plain = app.task(name="decorator.plain_add")(add)
    durable = app.task(base=DurableTask, name="decorator.durable_add")(add)
    assert durable(1, 2) == plain(1, 2) == 3
    assert durable.apply((1, 2)).result == 3
    assert inspect.signature(durable.run) == inspect.signature(plain.run)
    for option in ("acks_late", "reject_on_worker_lost", "max_retries", "default_retry_delay", "typing", "serializer"):
        assert getattr(durable, option) == getattr(plain, option)


class Order(pydantic.BaseModel):
    number: int


def test_a_name_that_only_type_checkers_know_does_not_hide_the_models_beside_it(app: Celery) -> None:
    @durable_task
    def place(ctx: ContextOfTheChecker, order: Order) -> list[Any]:
        return [type(order).__name__, order.number]

    assert place.apply(({"number": "7"},)).result == ["Order", 7]


@pytest.mark.parametrize("note", ["OrderBelow", "OrderBelow | None"])
def test_a_model_may_be_defined_further_down_the_module(app: Celery, note: str) -> None:
    def place(ctx: Any, order: Any) -> list[Any]:
        return [type(order).__name__, order.number]

    place.__annotations__ = {"order": note, "return": "OrderBelow"}
    task = durable_task(place)
    place.__globals__["OrderBelow"] = Order  # as the rest of the module does
    try:
        assert not app.finalized
        assert task.apply(({"number": "7"},)).result == ["Order", 7]
    finally:
        del place.__globals__["OrderBelow"]


def test_parameters_may_have_any_names(app: Celery) -> None:
    @durable_task
    def of_self(ctx: DurableContext, self: str, task: str = "", args: str = "") -> list[str]:
        return [self, task, args]

    class Static(DurableTask[Any, Any]):
        name = "decorator.static"

        @staticmethod
        def run(self: str, task: str = "") -> list[str]:  # noqa: PLW0211
            return [self, task]

    assert of_self("a", "b", "c") == of_self.apply(("a", "b", "c")).result == ["a", "b", "c"]
    assert of_self.apply(("a",), {"task": "b"}).result == ["a", "b", ""]
    static = app.register_task(Static())
    assert static.apply(("a", "b")).result == ["a", "b"]


def add(a: int, b: int = 1) -> int:
    return a + b


class Adder:
    def __call__(self, a: int, b: int = 1) -> int:
        return a + b


def add_to(kind: Any, a: int, b: int = 1) -> int:
    assert kind is not None
    return a + b


@pytest.mark.parametrize(
    "run",
    [add_to, staticmethod(add), classmethod(add_to), functools.partial(add), Adder()],
    ids=["method", "staticmethod", "classmethod", "partial", "callable"],
)
def test_run_may_be_all_that_a_method_may_be(app: Celery, run: Any) -> None:
    if sys.version_info >= (3, 14) and isinstance(run, functools.partial):
        pytest.skip("a partial is a method from Python 3.14 on")
    kind = type("Adding", (DurableTask,), {"name": "decorator.adding", "run": run})

    task = app.register_task(kind())

    assert task.apply((1, 2)).result == 3
    assert [task.apply((a,)).result for a in (1, 2)] == [2, 3]
    assert list(inspect.signature(task.run).parameters) == ["a", "b"]


def test_run_that_is_none_of_these_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Broken\.run must be a function, got 'add'"):
        type("Broken", (DurableTask,), {"run": "add"})


@pytest.mark.parametrize("bind", [False, True])
def test_the_signature_of_a_task_that_celery_retries_is_its_own(app: Celery, bind: bool) -> None:
    """For those who look at it: to make a key of a task's arguments, say."""

    def plain(a: int, b: int = 1) -> int:
        return a + b

    def bound(self: Any, a: int, b: int = 1) -> int:
        return a + b

    function: Any = bound if bind else plain
    tasks = [
        app.task(name=f"decorator.{kind.__name__}", base=kind, bind=bind, autoretry_for=(OSError,))(function)
        for kind in (Task, DurableTask)
    ]

    celerys, ours = (inspect.signature(task.run) for task in tasks)

    assert ours == celerys
    assert list(ours.parameters) == ["a", "b"]


@pytest.mark.parametrize("wraps", [functools.wraps, lambda _function: lambda decorated: decorated])
def test_a_decorator_from_the_task_annotations_is_within_the_execution(app: Celery, wraps: Any) -> None:
    def doubled(function: Any) -> Any:
        @wraps(function)
        def decorated(*args: Any) -> Any:
            return 2 * function(*args)

        return decorated

    app.conf.task_annotations = {"decorator.annotated": {"@run": doubled}}

    @durable_task(name="decorator.annotated")
    def annotated(ctx: DurableContext, a: int) -> int:
        return ctx.run("add", add, a)

    assert annotated.apply((1,)).result == 4


@pytest.mark.parametrize("inherited", [False, True])
def test_an_annotated_class_that_celery_retries_has_its_context(app: Celery, inherited: bool) -> None:
    """Celery has put its retry around the run() of the class before that is annotated."""

    class Adds(DurableTask[Any, Any]):
        name = "decorator.adds"
        autoretry_for = (OSError,)

        def run(self, a: int) -> Any:
            return self.ctx.run("add", add, a)

    class AddsMore(Adds):
        name = "decorator.adds_more"

        def run(self, a: int) -> Any:
            return super().run(a) + self.ctx.run("more", add, a)

    def handed_on(function: Any) -> Any:
        def decorated(*args: Any) -> Any:
            return function(*args)

        return decorated

    app.conf.task_annotations = {"*": {"@run": handed_on}}
    task = app.register_task((AddsMore if inherited else Adds)())

    result = task.apply((1,))

    assert (result.state, result.result) == ("SUCCESS", 4 if inherited else 2)


# -- Celery's retry options, where they are not the decorator's


class Few(Task):  # type: ignore[type-arg]
    """A base class as a fleet has one."""

    autoretry_for = (KeyError,)
    max_retries = 1
    default_retry_delay = 0


@pytest.mark.parametrize("said_by", ["base", "app's base", "annotations"])
def test_retry_options_that_are_said_elsewhere_hold_too(app: Celery, said_by: str) -> None:
    if said_by == "app's base":
        app.Task = Few
    if said_by == "annotations":
        app.conf.task_annotations = {"decorator.few": {"max_retries": 1, "default_retry_delay": 0}}
    executions = []

    @durable_task(name="decorator.few", **({"base": Few} if said_by == "base" else {}))
    def few(ctx: DurableContext) -> None:
        executions.append(1)
        raise KeyError

    assert isinstance(few.apply().result, KeyError)
    assert len(executions) == 2


def test_what_the_decorator_says_comes_first(app: Celery) -> None:
    @durable_task(base=Few, max_retries=2)
    def more(ctx: DurableContext) -> None: ...

    @durable_task(base=Few, task_retry_policy=RetryPolicy(max_attempts=5))
    def by_policy(ctx: DurableContext) -> None: ...

    assert (more.retry_rules.backoff.max_attempts, more.retry_rules.retry_for) == (3, (KeyError,))
    assert (by_policy.retry_rules.backoff.max_attempts, by_policy.retry_rules.retry_for) == (5, (BaseException,))


def test_the_function_itself_is_not_for_calls_from_elsewhere(app: Celery) -> None:
    @durable_task
    def alone(ctx: DurableContext) -> None: ...

    with pytest.raises(NoContextError, match="alone is known while the task runs"):
        alone.__wrapped__(None)  # type: ignore[attr-defined]


def test_an_error_that_a_task_is_known_to_throw_is_none_of_the_log(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @durable_task(throws=(KeyError,), max_retries=0)
    def thrower(ctx: DurableContext) -> None:
        raise KeyError

    with caplog.at_level("INFO", "celery_durable"):
        thrower.apply()

    [said] = [line for line in caplog.records if line.name == "celery_durable"]
    assert (said.levelname, "failed for good" in said.message) == ("INFO", True)
