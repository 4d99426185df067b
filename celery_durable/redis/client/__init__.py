"""Connections to Redis, and the commands that are sent over them: what any use of it needs."""
