"""stdout and stderr that are closed, full or know ASCII alone, and lines on them."""

import codecs
import io
import os
import sys
import unicodedata
from typing import Any, TextIO

from deconfound.runtime.escaping import for_terminal, one_line

ERRORS = "deconfound.plain"
"""Name of the way in which a sign is written that the stream's encoding lacks."""
PLAIN = {
    "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "→": "->", "±": "+-", "≥": ">=", "≤": "<=",
    "─": "-", "━": "-", "│": "|", "•": "*", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


def prepare() -> None:
    """Have no line end the work, because its stream is closed or full or lacks one of its signs.

    A closed stdin, stdout or stderr becomes the null device, lest the next file that is opened
    takes its number. What stdout and stderr do not take is lost; `refused` says so of stdout.
    Streams that a caller of the process has replaced stay.
    """
    codecs.register_error(ERRORS, _spelt_out)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if _is_closed(number) and os.open(os.devnull, os.O_RDWR) == number:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - as long as the process
        elif name != "stdin" and getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lasting(getattr(sys, name)))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"deconfound: {for_terminal(one_line(text))}", file=sys.stderr)


def refused() -> str | None:
    """Why stdout has lost lines, after a flush; None if it has not."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.refused if isinstance(raw, _Lasting) else None


class _Lasting(io.FileIO):
    """A file that takes everything, and loses what the system does not take.

    It is an error, once, that the reader of stdout has gone.
    """

    refused: str | None = None
    gone = False

    def write(self, data: Any, /) -> int:
        if self.gone:
            return len(data)
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            self.gone = True
            if self.fileno() == 1:
                raise
            return len(data)
        except OSError as error:
            self.refused = error.strerror
            return len(data)


def _lasting(stream: TextIO) -> TextIO:
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        line_buffering=stream is sys.stderr or stream.isatty(),
        write_through=getattr(stream, "write_through", False),
    )


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _spelt_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(map(_in_ascii, signs)), error.end


def _in_ascii(sign: str) -> str:
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return PLAIN.get(sign) or plain or sign.encode("unicode_escape").decode("ascii")
