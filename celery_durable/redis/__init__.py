"""The journal in Redis. This is the only room that imports redis-py."""
