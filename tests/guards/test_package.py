"""What the package says of itself, and what its source distribution holds."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from setuptools.command.egg_info import FileList

from deconfound.version import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = ROOT / "docs" / "package.md"


def test_the_source_distribution_holds_every_tracked_file(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not (ROOT / ".git").exists():
        pytest.skip("no repository of git")
    monkeypatch.chdir(ROOT)
    taken = FileList()
    for line in Path("MANIFEST.in").read_text(encoding="utf-8").splitlines():
        taken.process_template_line(line)
    tracked = {name for name in done.stdout.splitlines() if Path(name).exists()}
    assert sorted(tracked - {*taken.files, "MANIFEST.in"}) == []  # MANIFEST.in is always taken


def test_the_page_of_the_package_needs_no_other_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert PROJECT["project"]["readme"]["file"] == "docs/package.md"
    assert re.findall(r"\]\((?!https://)", text) == []


def test_the_page_of_the_package_says_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = readme.partition("\n!")[0]
    citation = readme.partition("cite its authors:\n")[2]
    text = PAGE.read_text(encoding="utf-8")
    assert opening in text
    assert citation in text


def test_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("cite its authors:\n")[2]
    assert cited["version"] == __version__
    assert cited["license"] == PROJECT["project"]["license"]
    for paper, line in zip(cited["references"], readme.strip().splitlines(), strict=True):
        names = ", ".join(author["family-names"] for author in paper["authors"])
        assert line.startswith(f"- {names}. *{paper['title']}.*")
        assert str(paper["year"]) in line


def test_groups_are_the_extras_of_their_names() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    assert groups == {name: extras[name] for name in ("docs", "dev")}


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-newest.txt"])
def test_a_lock_holds_names_and_versions_of_all_that_is_needed(lock: str) -> None:
    about, *lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    assert about.startswith("# ")
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == []
    locked = {_name(line) for line in lines}
    assert len(locked) == len(lines)
    groups = PROJECT["dependency-groups"]
    needed = [*PROJECT["project"]["dependencies"], *groups["docs"], *groups["dev"]]
    assert {_name(one) for one in needed} - locked == set()


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~ ]", requirement)[0]).lower()


def test_the_classifiers_name_the_oldest_python() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    named = [
        found[1]
        for line in PROJECT["project"]["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert named[0] == oldest
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
