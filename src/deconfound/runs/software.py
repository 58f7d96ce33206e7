"""The software that a run was made with."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def software() -> dict[str, Any]:
    """Versions of Python and of the packages that decide numbers, and the commit if known."""
    packages = ("deconfound", "torch", "numpy", "lightning-fabric", "scikit-learn", "faiss-cpu")
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    found["packages"] = {package: metadata.version(package) for package in packages}
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    found["commit"] = commit
    found["git_clean"] = None if commit is None else _git(folder, "status", "--porcelain") == ""
    return found


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
