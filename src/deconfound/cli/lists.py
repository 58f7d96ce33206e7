"""The verb list: methods, metrics and sources as tables."""

from typing import Any

from deconfound.cli.arguments import ListArguments
from deconfound.cli.documents import print_document
from deconfound.cli.parsing import name_first, parse
from deconfound.cli.printing import print_table


def call_list(words: list[str]) -> None:
    """Print the methods, the metrics or the sources."""
    tables = {"methods": _methods, "metrics": _metrics, "sources": _sources}
    name = name_first(words, "list", "list", list(tables))
    asked = parse(ListArguments, words[1:], f"list {name}", f"List the {name}.")
    found = tables[name]()
    if asked.as_json:
        print_document({name: found})
    else:
        print_table(_HEADS[name], [_cells(row) for row in found])


_HEADS = {
    "methods": ["method", "what it is", "paper"],
    "metrics": ["metric", "better", "range", "what it is", "paper"],
    "sources": ["source", "what it is", "paper"],
}


def _cells(row: dict[str, Any]) -> list[str]:
    row = dict(row)
    if row.pop("post_hoc", False):
        row["name"] += " (post hoc)"
    if "range" in row:
        low, high = row["range"]
        row["range"] = f"{low:g} … {high:g}"
    return list(row.values())


def _methods() -> list[dict[str, Any]]:
    from deconfound import methods
    from deconfound.methods import post_hoc

    rows = [_row(name, methods.load(name), post_hoc=False) for name in methods.names()]
    return rows + [_row(name, post_hoc.load(name), post_hoc=True) for name in post_hoc.names()]


def _metrics() -> list[dict[str, Any]]:
    from deconfound.metrics.score import all_metrics

    return [
        {"name": one.name, "better": one.better, "range": list(one.range), "summary": one.summary,
         "paper": one.paper} for one in all_metrics().values()
    ]  # fmt: skip


def _sources() -> list[dict[str, Any]]:
    from deconfound.data import sources

    return [_row(name, module) for name, module in sources.discover().items()]


def _row(name: str, what: Any, **more: bool) -> dict[str, Any]:
    return {"name": name, "summary": what.SUMMARY, "paper": what.PAPER, **more}
