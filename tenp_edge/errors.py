"""The one error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Input or budget that cannot work: what, the actual numbers, and a way out.

    The command line prints it as two lines and exits with 2; in Python it is raised as it is.
    Anything that is not a UserError is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\ntry: {hint}")
        self.message = message
        self.hint = hint


def shown(text: str, max_chars: int = 80) -> str:
    """What a file says (a name, a key, a reason with one in it), fit for a line of a terminal."""
    clean = text if text.isprintable() else ascii(text)[1:-1]
    return clean if len(clean) <= max_chars else f"{clean[:max_chars]}..."
