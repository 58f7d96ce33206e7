"""Completion of the shell, and what the command line imports before it knows the verb."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deconfound import cli
from deconfound.cli import completion
from deconfound.cli.completion import SHELLS
from deconfound.verbs import VERBS

HEAVY = (
    "numpy", "pandas", "scipy", "sklearn", "torch", "anndata", "h5py", "pyarrow", "faiss", "monai",
    "matplotlib", "plotly", "lightning_fabric", "umap", "jinja2",
)  # fmt: skip
LIGHT = ("describe", "embed", "measure", "transfer", "report", "export", "check")
"""Verbs whose help needs no library of numbers."""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "deconfound.bash"
    with file.open("w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        cli.main(["--completion", "bash"])
    return file


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ([""], {*VERBS, "-h", "--help"}),
        (["m"], {"measure"}),
        (["fit", "sc"], {"scbd"}),
        (["fit", "scbd", "--alp"], {"--alpha"}),
        (["fit", "erm", "--alp"], set()),
        (["list", "m"], {"methods", "metrics"}),
        (["ingest", "source", "cm"], {"cmnist"}),
        (["ingest", "--feature"], {"--feature-columns"}),
        (["measure", "--comp"], {"--complexes"}),
        (["correct", "tv"], {"tvn"}),
        (["compare", "--js"], {"--json"}),
    ],
)
def test_bash_offers(bash_script: Path, typed: list[str], offered: set[str]) -> None:
    call = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_deconfound'
    call += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", call, "bash", str(bash_script), "deconfound", *typed],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(filter(None, done.stdout.splitlines())) == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "VERBS", {name: VERBS[name] for name in ("check", "list")})
    cli.main([f"--completion={shell}"])
    script = capsys.readouterr().out
    assert all(name in script for name in ("check", "metrics", "--json"))


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--completion", "powershell"], ["--completion"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        out, err = capsys.readouterr()
        assert out == ""
        assert "--completion: unknown shell" in err
        assert "bash, zsh, fish" in err


def imported(words: list[str]) -> list[str]:
    """Which of the heavy libraries a command has imported when it ends."""
    code = (
        "import sys\nfrom deconfound import cli\ntry:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        f"print(*[name for name in {(*HEAVY, 'tyro', 'pydantic')} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["unknown"]])
def test_without_a_verb_nothing_heavy_is_imported(words: list[str]) -> None:
    assert imported(words) == []


@pytest.mark.parametrize("verb", LIGHT)
def test_the_help_of_a_verb_imports_no_library_of_numbers(verb: str) -> None:
    assert imported([verb, "--help"]) == ["tyro", "pydantic"]
