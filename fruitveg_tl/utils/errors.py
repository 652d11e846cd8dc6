"""The exception that the command line shows as one line."""

import os

STOPPED = "stopped; the same command continues with the remaining steps"


class InputError(Exception):
    """A file, name or setting from the user cannot be used.

    The message names it and a remedy; each line is an independent problem. The command line prints
    it without a traceback and exits with code 2.
    """


def printable(path: os.PathLike) -> str:
    """Return a path for a message, with unprintable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path)
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
