"""The journal in Redis. The only room that imports redis-py."""
