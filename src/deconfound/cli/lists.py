"""The verb list: methods, metrics and sources as tables."""

from deconfound.cli.arguments import Arguments
from deconfound.cli.parsing import name_first, parse
from deconfound.cli.printing import print_table


def call_list(words: list[str]) -> None:
    """Print the methods, the metrics or the sources."""
    tables = {"methods": _methods, "metrics": _metrics, "sources": _sources}
    name = name_first(words, "list", "list", list(tables))
    parse(Arguments, words[1:], f"list {name}", f"List the {name}.")
    print_table(*tables[name]())


def _methods() -> tuple[list[str], list[list[str]]]:
    from deconfound import methods
    from deconfound.methods import post_hoc

    rows = [[name, (found := methods.load(name)).SUMMARY, found.PAPER] for name in methods.names()]
    for name in post_hoc.names():
        correction = post_hoc.load(name)
        rows.append([f"{name} (post hoc)", correction.SUMMARY, correction.PAPER])
    return ["method", "what it is", "paper"], rows


def _metrics() -> tuple[list[str], list[list[str]]]:
    from deconfound.metrics.score import all_metrics

    rows = [
        [one.name, one.better, f"{one.range[0]:g} … {one.range[1]:g}", one.summary, one.paper]
        for one in all_metrics().values()
    ]
    return ["metric", "better", "range", "what it is", "paper"], rows


def _sources() -> tuple[list[str], list[list[str]]]:
    from deconfound.data import sources

    found = sources.discover()
    rows = [[name, module.SUMMARY, module.PAPER] for name, module in found.items()]
    return ["source", "what it is", "paper"], rows
