"""The tests, in rings: `unit` needs nothing, `integration` a Redis, `smoke` a Redis and real workers."""
