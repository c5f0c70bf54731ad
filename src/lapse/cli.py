"""The `lapse` command: its entry point, which turns every failure into one line and a status.

Statuses: 0 done, 1 the output's reader went away (or a benchmark missed a target, or the demo was
served what it must not be), 2 wrong arguments or bad input, 130 interrupted. The commands
themselves are in `commands`.
"""

from __future__ import annotations

__all__ = ["main"]

import os
import sys
from collections.abc import Sequence

_EXTRA = {"typer", "rich"}
_READER_GONE, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, that of the process by default, and return its exit status."""
    try:
        from lapse.commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        return _complain(f"{error.name} is not installed: pip install 'lapse[cli]'")
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is still buffered must go somewhere, or the interpreter complains as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error)
    except ValueError as error:
        return _complain(error)
    except Exception as error:
        # Click's own complaints: their class is typer's or click's, as the version has it.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(message())


def _complain(what: object) -> int:
    """Say on standard error what went wrong, in one line."""
    print("lapse:", " ".join(str(what).split()), file=sys.stderr)
    return _MISUSED


if __name__ == "__main__":
    sys.exit(main())
