"""The house: few files at the top, no package named as a public function, every file importable."""

import importlib
import pkgutil
from pathlib import Path

import deconfound

SOURCE = Path(deconfound.__file__).parent
MOST_AT_THE_TOP = 8


def test_few_files_stand_at_the_top() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= MOST_AT_THE_TOP


def test_no_package_or_module_at_the_top_bears_a_public_name() -> None:
    assert {file.stem for file in SOURCE.iterdir()} & set(deconfound.__all__) == set()


def test_every_module_can_be_imported() -> None:
    """No extra is needed, and the network is closed in all tests."""
    for module in pkgutil.walk_packages([str(SOURCE)], "deconfound."):
        if "triton" not in module.name:
            importlib.import_module(module.name)
