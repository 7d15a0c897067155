"""Errors that a user can make, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, a command line or a file.

    The message is one line that names the field, the value and the fix. Command lines print it
    without a traceback and exit with code 2.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when a known word is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
