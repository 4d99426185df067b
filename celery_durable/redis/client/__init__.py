"""Connections to Redis, and the commands that are sent over them. Every use of Redis needs them."""
