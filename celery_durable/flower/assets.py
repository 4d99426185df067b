"""The templates, the style and the script of the pages. Nothing comes from another server."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
_TEMPLATES = Path(__file__).parent / "templates"


def _version() -> str:
    """Changes with each of the files, so that no browser keeps an old one."""
    files = sorted(path for path in FOLDER.iterdir() if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


VERSION = _version()
_AT = "{{ reverse_url('durable') }}"
STYLE = f'<link rel="stylesheet" href="{_AT}/static/durable.css?v={VERSION}">'
SCRIPT = f'<script src="{_AT}/static/durable.js?v={VERSION}" data-durable-root="{_AT}"></script>'


def own_templates() -> dict[str, str]:
    """Our templates by name."""
    texts = {path.name: path.read_text("utf-8") for path in _TEMPLATES.glob("*.html")}
    return {name: text.replace("[[style]]", STYLE).replace("[[script]]", SCRIPT) for name, text in texts.items()}
