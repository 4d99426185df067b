"""What durability costs: ratios against bare Redis and plain Celery, measured in one run.

`python -m benchmarks` prints a table; nothing here is a test, and no number here fails a build.
"""
