"""The history is what the server has written, one write per script and key, over restarts and torn ends."""

import pytest

from tests.chaos import history
from tests.chaos.stage import JournalServer

SCRIPT = """
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'text', ARGV[1])
redis.call('HDEL', KEYS[1], 'due')
redis.call('HSET', KEYS[2], 'other', '1')
"""


def test_a_script_is_one_write_per_key_and_the_order_is_kept_over_a_restart() -> None:
    with JournalServer(appendonly=True) as server:
        with server.client() as client:
            client.hset("run", "due", "1")
            client.eval(SCRIPT, 2, "run", "other", "a\r\n$5\r\n☃")
        server.kill()
        server.start()
        with server.client() as client, server.client(db=1) as backend:
            client.eval(SCRIPT, 2, "run", "other", "b")
            backend.set("result", "{}", ex=60)

        writes = history.read(server.directory)

    assert [(write.number, write.db, write.key, write.fields, write.gone) for write in writes] == [
        (0, 0, "run", {"due": "1"}, set()),
        (1, 0, "run", {"attempt": "1", "status": "running", "text": "a\r\n$5\r\n☃"}, {"due"}),
        (2, 0, "other", {"other": "1"}, set()),
        (3, 0, "run", {"attempt": "2", "status": "running", "text": "b"}, set()),
        (4, 0, "other", {"other": "1"}, set()),
        (5, 1, "result", {"": "{}"}, set()),
    ]


@pytest.mark.parametrize("torn", [1, 5, 20])
def test_a_torn_command_at_the_end_is_none(torn: int) -> None:
    with JournalServer(appendonly=True) as server:
        with server.client() as client:
            client.hset("run", "first", "1")
            client.hset("run", "second", "2")
        [file] = server.directory.glob("appendonlydir/*.incr.aof")
        file.write_bytes(file.read_bytes()[:-torn])

        assert [write.fields for write in history.read(server.directory)] == [{"first": "1"}]
