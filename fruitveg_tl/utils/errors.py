"""The one exception that is shown to the user as a single line."""

import os

# Said after Ctrl-C, by whoever ends the process.
STOPPED = "stopped; the same command goes on with the steps that are left"


class InputError(Exception):
    """Something the user gave (a file, a name, a setting) cannot be used.

    The message names the thing and what to do about it. The command line prints it without a
    traceback and exits with code 2. Several lines mean several independent problems.
    """


def printable(path: os.PathLike) -> str:
    """Return a path for a message: what cannot be printed on one line is escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path)
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
