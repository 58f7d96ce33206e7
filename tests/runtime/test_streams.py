"""stdout and stderr that are closed, full or of ASCII: one line at most, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERB = [sys.executable, "-m", "deconfound"]
FULL = "deconfound: stdout: No space left on device; what was to be said there is lost, "
FULL += "files are whole\n"
UNKNOWN = "deconfound: unknown verb 'nothing'; expected one of "


def shell(redirected: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A verb with its streams redirected as a shell does it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *VERB, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("words", "redirected", "code", "out", "errors"),
    [
        (["--version"], ">&-", 0, "", ""),
        (["--help"], ">/dev/full", 2, "", FULL),
        (["nothing"], ">&-", 2, "", UNKNOWN),
        (["nothing"], "2>&-", 2, "", ""),
        (["nothing"], "2>/dev/full", 2, "", ""),
        (["nothing"], ">&- 2>&- <&-", 2, "", ""),
        (["--version"], "2>&-", 0, "deconfound ", ""),
        (["compare", "--help"], ">/dev/full", 2, "", FULL),
        (["compare", "--help"], "| head -1", 0, "usage", ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stream_that_takes_nothing(
    words: list[str], redirected: str, code: int, out: str, errors: str, unbuffered: str
) -> None:
    done = shell(redirected, *words, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    assert done.stdout.startswith(out) if out else done.stdout == ""
    assert done.stderr.startswith(errors) if errors else done.stderr == ""
    assert done.stderr.count("\n") <= 1


def test_a_file_that_is_written_while_stdout_is_closed_is_not_written_into(tmp_path: Path) -> None:
    """Without a number 1 the next file that is opened would get it, and every line printed."""
    code = "import os, sys; from deconfound.cli import main\n"
    code += "try: main(['--version'])\nexcept SystemExit: pass\n"
    code += f"file = open({str(tmp_path / 'data')!r}, 'w'); os.write(1, b'said'); file.close()"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "data").read_text() == ""


def test_signs_that_an_encoding_lacks_are_spelt_out(tmp_path: Path) -> None:
    """As with `LC_ALL=C PYTHONIOENCODING=ascii`: text, the box of a table, and a bar."""
    code = (
        "import sys\n"
        "from deconfound.runtime import streams\n"
        "streams.prepare()\n"
        "from deconfound.cli.printing import print_table, say\n"
        "from deconfound.runtime.progress import Progress\n"
        "say('2 × 3 … 4 – 5 − é µ')\n"
        "print_table(['a'], [['long' * 40]])\n"
        "streams.complain('Ω…')\n"
        "with Progress('bar …', 2, 'rows') as bar: bar.update(2)\n"
    )
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    for environment in (
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "code.py")],
            capture_output=True,
            check=False,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
        out, errors = done.stdout.decode("ascii"), done.stderr.decode("ascii")
        assert out.splitlines()[0] == "2 x 3 ... 4 - 5 - e \\xb5"
        assert errors.splitlines()[0] == "deconfound: \\u03a9..."
        assert "bar ..." in errors
        assert "2/2" in errors
