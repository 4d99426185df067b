"""What redis-py keeps to itself, or documents nowhere: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import importlib.util
import inspect
import socket
from types import FunctionType, ModuleType
from typing import Any

import pytest
import redis.connection
import redis.crc
from redis import _parsers
from redis.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.exceptions import AskError, MovedError, OutOfMemoryError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from celery_durable.redis.client import redis_py
from celery_durable.redis.client.redis_py import (
    address_of,
    bound_timeouts,
    parser_of,
    point_at,
    redirected_to,
    slot_of,
    socket_of,
)

PARSERS = [_parsers._HiredisParser, _parsers._RESP2Parser, _parsers._RESP3Parser]  # noqa: SLF001


def load_again() -> ModuleType:
    """Look all names up, as the first import does."""
    spec: Any = importlib.util.spec_from_file_location("celery_durable.redis.redis_py_again", redis_py.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def method_without(kind: type, method: str, name: str) -> Any:
    """The method as it is after redis-py has renamed an attribute that it sets."""
    usual = inspect.unwrap(getattr(kind, method))
    code = usual.__code__
    renamed = code.replace(co_names=tuple("_renamed" if one == name else one for one in code.co_names))
    return FunctionType(renamed, usual.__globals__, usual.__name__, usual.__defaults__, usual.__closure__)


@pytest.mark.parametrize(
    ("kind", "method", "name"),
    [
        (AbstractConnection, "__init__", "_sock"),
        (AbstractConnection, "set_parser", "_parser"),
        (AbstractConnection, "__init__", "socket_timeout"),
        (AbstractConnection, "__init__", "socket_connect_timeout"),
        (Connection, "__init__", "host"),
        (Connection, "__init__", "port"),
        (UnixDomainSocketConnection, "__init__", "path"),
        (AskError, "__init__", "host"),
        (AskError, "__init__", "port"),
        (AskError, "__init__", "slot_id"),
        (redis.connection.DefaultParser, "can_read", ""),
        (redis.connection.DefaultParser, "read_response", ""),
        (redis.connection.DefaultParser, "parse_error", ""),
        (redis.crc, "key_slot", ""),
    ],
)
def test_a_name_that_is_gone_is_told_at_import(
    monkeypatch: pytest.MonkeyPatch, kind: Any, method: str, name: str
) -> None:
    load_again()
    if name:
        monkeypatch.setattr(kind, method, method_without(kind, method, name))
    for owner in kind.__mro__ if isinstance(kind, type) else [kind]:
        if (name or method) in vars(owner):  # some versions have a property
            monkeypatch.delattr(owner, name or method)

    with pytest.raises(ImportError, match=rf"redis .* has no .*[. ]{name or method}, .*; redis>=6.4,<9 has it"):
        load_again()


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_a_parser_is_called_as_it_always_was(parser: Any) -> None:
    inspect.signature(parser.can_read).bind(None, 0.5)
    inspect.signature(parser.read_response).bind(None, disable_decoding=True)
    errors = [parser.parse_error(text) for text in ("OOM command not allowed", "MOVED 5 10.0.0.2:7001", "SHOP closed")]

    assert [type(error) for error in errors] == [OutOfMemoryError, MovedError, ResponseError]
    assert str(errors[2]) == "SHOP closed"


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_replies_are_read_from_the_socket_of_a_connection(parser: Any) -> None:
    ours, theirs = socket.socketpair()
    connection: Any = Connection(parser_class=parser)
    assert socket_of(connection) is None
    with ours, theirs:
        connection._sock = ours  # noqa: SLF001  as after it has connected
        parser_of(connection).on_connect(connection)  # type: ignore[attr-defined]
        assert socket_of(connection) is ours
        assert not parser_of(connection).can_read(0)

        theirs.sendall(b"$2\r\n\xc3\xbc\r\n-OOM full\r\n:1\r\n")

        assert parser_of(connection).can_read(1)
        replies = [parser_of(connection).read_response(disable_decoding=True) for _ in range(3)]
        connection.disconnect()
    assert (replies[0], type(replies[1]), replies[2]) == ("ü".encode(), OutOfMemoryError, 1)
    assert socket_of(connection) is None


def test_a_connection_connects_to_where_it_was_pointed_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(host="nowhere.invalid", port=1, socket_timeout=60, socket_connect_timeout=60)
        port = server.getsockname()[1]

        point_at(connection, "127.0.0.1", port)
        bound_timeouts(connection, 5)

        sock = connection._connect()  # type: ignore[no-untyped-call]  # noqa: SLF001
        with sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert sock.gettimeout() == 5
    bound_timeouts(connection, 9)
    assert connection.socket_timeout == 5


def test_where_a_connection_leads_to_is_known() -> None:
    sentinel = SentinelConnectionPool("master", Sentinel([]), host="")  # type: ignore[no-untyped-call]

    assert address_of(Connection(host="10.0.0.2", port=7001)) == "10.0.0.2:7001"
    assert address_of(UnixDomainSocketConnection(path="/run/redis.sock")) == "/run/redis.sock"
    assert address_of(sentinel.make_connection()) == ""


def test_a_key_has_the_slot_of_its_tag() -> None:
    assert slot_of("123456789") == 12739  # as Redis' documentation has it
    assert slot_of("durable:{123456789}:leases") == 12739


def test_a_redirection_tells_where_to() -> None:
    assert redirected_to(MovedError("3999 127.0.0.1:6381")) == (3999, "127.0.0.1", 6381)
    assert redirected_to(AskError("3999 :6381")) == (3999, "", 6381)


def test_what_is_documented_is_called_as_it_always_was() -> None:
    inspect.signature(Connection.connect).bind(None)
    inspect.signature(Connection.disconnect).bind(None)
    inspect.signature(Connection.send_command).bind(None, "CLUSTER", "SLOTS")
    inspect.signature(Connection.send_packed_command).bind(None, (b"PING",))
    inspect.signature(Connection.read_response).bind(None, disable_decoding=True)
    inspect.signature(redis.ConnectionPool.make_connection).bind(None)
    inspect.signature(Retry).bind(None, 0)
