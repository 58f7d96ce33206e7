"""Benchmarks run, of a few images; what they measure is no matter of a test."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page of ratios, imported beside the benchmarks that it calls."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("all")


def test_the_script_for_a_gpu_runs_on_a_processor(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["device"].startswith("cpu")
    assert set(found["seconds"]) == {"scbd", "losses", "embed", "ist", "precision"}
    assert found["left_out"] == []
    assert [row["precision"] for row in found["scbd"]] == ["32", "bf16"]
    assert found["losses"]["rows"][0]["share_of_float32"] > 0
    assert found["embed"]["small, 32"]["ratio"] > 0
    assert {row["method"] for row in found["ist"]} == {"ist", "stargan2"}
    assert "prediction macro_f1 test" in found["precision"]


def test_a_part_that_would_begin_too_late_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--tiny", "--minutes", "-1"]
    done = subprocess.run([*words, "--out", str(out)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["left_out"][0] == "scbd"


def test_a_ratio_that_has_fallen_by_a_fifth_is_named(
    page: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tmp_path / "before.json"
    ratios = {"losses_1024": 5.0, "lisi": 100.0, "gone": 2.0}
    before.write_text(json.dumps({"quick": True, "ratios": ratios}), encoding="utf-8")
    monkeypatch.setitem(page.PARTS, "losses", lambda quick: {"losses_1024": 4.1 if quick else 0.0})
    out = tmp_path / "now.json"
    words = ["all.py", "--parts", "losses", "--against", str(before), "--out", str(out), "--quick"]
    monkeypatch.setattr(sys, "argv", words)
    assert page.main() == 0
    assert "no ratio is lower by 20 %" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["ratios"] == {"losses_1024": 4.1}
    monkeypatch.setitem(page.PARTS, "losses", lambda _: {"losses_1024": 4.0})
    assert page.main() == 1
    assert "losses_1024: 4.00, was 5.00: lower by 20%" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", words[:-1])
    assert page.main() == 0
    assert "is of another size; not compared" in capsys.readouterr().out
