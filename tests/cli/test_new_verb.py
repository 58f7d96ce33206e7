"""A new verb is one file in `deconfound.cli` and one row in the table of verbs."""

import re
from pathlib import Path

import pytest

import deconfound.cli
from deconfound import cli
from deconfound.verbs import VERBS, Form, Verb

GREET = '''"""The verb greet."""

from deconfound.cli.arguments import Arguments
from deconfound.cli.parsing import parse
from deconfound.cli.printing import say


class GreetArguments(Arguments):
    """Greet a plate."""

    plate: str = "P1"
    """Name of the plate."""


def call_greet(words: list[str]) -> None:
    """Greet the plate that the words name."""
    say(f"hello, {parse(GreetArguments, words, 'greet').plate}")
'''


def test_a_file_and_a_row_are_a_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.setattr(deconfound.cli, "__path__", [*deconfound.cli.__path__, str(tmp_path)])
    verb = Verb("greet a plate", (Form("greet:call_greet", "greet", "", "greet --plate NAME"),))
    monkeypatch.setitem(VERBS, "greet", verb)
    cli.main(["greet", "--plate", "P7"])
    assert capsys.readouterr().out == "hello, P7\n"
    cli.main(["--help"])
    assert re.search(r"^  greet +greet a plate$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit):
        cli.main(["greet", "--help"])
    assert "Name of the plate." in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["greet", "--plte", "P7"])
    assert stop.value.code == 2
    assert "did you mean --plate?" in capsys.readouterr().err
