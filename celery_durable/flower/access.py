"""Who may do what: as Flower says."""

from __future__ import annotations

import os
from base64 import b64decode
from binascii import Error as NotBase64

from celery_durable.seams.flower import FlowerPage, is_open, is_read_only, knows_users


def why_closed(page: FlowerPage) -> str:
    """Why nobody may act on runs here, in one sentence; empty: users may."""
    if is_read_only(page):
        return "Flower only shows runs: it was started with --read-only."
    if not is_open(page, os.environ):
        return "Flower only shows runs, because it does not know who you are: start it with --basic-auth or --auth."
    return ""


def user_of(page: FlowerPage) -> str | None:
    """The name of the user who asks; None: Flower asks nobody for it."""
    user = page.current_user
    if isinstance(user, str):
        return user
    if not (user and knows_users(page)):
        return None
    _, _, credentials = page.request.headers.get("Authorization", "").partition(" ")
    try:
        return b64decode(credentials).decode().partition(":")[0]
    except (NotBase64, UnicodeDecodeError):
        return None
