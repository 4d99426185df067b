"""Texts of users, as they are printed: nothing in them is a colour, or moves the cursor."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with escapes in place of what is no letter. Its lines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def one_line(text: str) -> str:
    """The same, on one line."""
    return printable(text).replace("\n", "\\n")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
