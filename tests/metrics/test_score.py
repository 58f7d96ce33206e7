import importlib
import subprocess
import sys

import pytest

from deconfound.metrics.score import Metric, all_metrics


def test_every_declaration_is_found_once_and_well_formed() -> None:
    found = all_metrics()
    one_per_module = {"accuracy", "knn_batch_cv", "mean_resultant_length", "ilisi"}
    assert one_per_module | {"probe_environment_macro_f1"} <= set(found)
    assert list(found) == sorted(found)
    for name, metric in found.items():
        assert metric.name == name
        assert metric.better in ("higher", "lower", "context")
        assert metric.range[0] < metric.range[1]
        assert metric.paper and metric.summary


def test_two_metrics_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Metric("accuracy", "lower", (0.0, 1.0), "nobody", "another accuracy")
    collapse = importlib.import_module("deconfound.metrics.collapse")
    monkeypatch.setattr(collapse, "TWIN", twin, raising=False)
    with pytest.raises(ValueError, match="'accuracy'"):
        all_metrics()


def test_import_loads_no_heavy_library() -> None:
    code = (
        "import sys, deconfound.metrics;"
        "print([name for name in ('torch', 'faiss', 'sklearn') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
