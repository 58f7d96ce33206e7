"""The command line."""

import sys

from deconfound.runtime import stop


def main(words: list[str] | None = None) -> None:
    """`dispatch.main`, whose modules are read first; a Ctrl-C meanwhile ends in one line too."""
    try:
        with stop.at_once():
            from deconfound.cli import dispatch
    except KeyboardInterrupt:
        print("deconfound: stopped before it began", file=sys.stderr)
        sys.exit(130)
    dispatch.main(words)
