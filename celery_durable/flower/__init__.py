"""Durable runs in Flower: a tab, a page for each run, a panel on Flower's own page of a task, and an API."""

from .installation import install

__all__ = ["install"]
