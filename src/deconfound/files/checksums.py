"""The checksums of a finished run, and whether its files still have them."""

import hashlib
import json
from pathlib import Path

from deconfound.errors import UserError
from deconfound.files import atomic

CHECKSUMS = "checksums.json"


def write_checksums(run: Path, model: Path) -> None:
    """Record the SHA-256 of every file of `run`, and of `model`, the future model.safetensors."""
    found = {
        file.name: sha256(file)
        for file in sorted(run.iterdir())
        if file.is_file() and file.name[0] != "." and file.name not in (CHECKSUMS, "resume.pt")
    }
    found["model.safetensors"] = sha256(model)
    atomic.write_text(run / CHECKSUMS, json.dumps(found, indent=2))


def read_checksums(run: Path) -> dict[str, str]:
    """SHA-256 by file name; raises UserError if they are missing or damaged."""
    file = run / CHECKSUMS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: missing or damaged; remove {run} and fit it again, or restore a copy"
        ) from error


def differs(file: Path, expected: str) -> bool:
    """Whether a file is missing or has another SHA-256 than `expected`."""
    return not file.is_file() or sha256(file) != expected


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """`sha256` of a file; of a folder, of the names and checksums of all its files."""
    if not path.is_dir():
        return sha256(path)
    found = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        found.update(f"{file.relative_to(path)}\0{sha256(file)}\n".encode())
    return found.hexdigest()
