"""`python -m fruitveg_tl`: the process around `cli.main`."""

import os
import signal
import sys
from contextlib import suppress

from fruitveg_tl.utils.errors import STOPPED


def _stop(*_) -> None:
    # Exit at once: libraries turn a KeyboardInterrupt into their own errors, or abort after it.
    os.write(terminal, f"{STOPPED}\n".encode())
    os._exit(130)


def _open_closed_streams() -> None:
    """Open the null device for each closed standard stream, so that no other file takes it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r"))


if __name__ == "__main__":
    _open_closed_streams()
    terminal = os.dup(2)  # `utils.backend` holds standard error back for a while
    signal.signal(signal.SIGINT, _stop)
    from fruitveg_tl.cli import main

    code = main()
    with suppress(OSError):  # `main` has already reported it
        sys.stdout.flush()
        sys.stderr.flush()
    # After a failure, library threads may abort a process that exits normally.
    os._exit(code)
