"""What `make docs` adds to the pages of this folder: the Python reference, and notebooks as pages.

Hooks of MkDocs, named in mkdocs.yml.
"""

import base64
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

import griffe
import nbformat
from anndata import AnnData
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import deconfound
from deconfound import losses, metrics
from deconfound.estimator import rows
from deconfound.methods import contract
from deconfound.metrics.score import all_metrics
from deconfound.verbs import VERBS

README = re.compile(r"\]\((?:\.\./)+README\.md(?:#[\w-]*)?\)")
CODE = re.compile(r"(?<!</span>)(?<!<pre>)<code>[^<]*</code>")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
WITHOUT_CONSTANTS = '{filters: ["!^_", "!^[A-Z_0-9]+$"]}'
TABLE = re.compile(r"<table.*</table>", re.DOTALL)


class PlainBrackets(griffe.Extension):
    """`NAME[+knn][=FILE]` in a docstring is text, and no link of Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Escape the brackets of the docstring of `obj`."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("][", "]\\[")


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of the reference to the navigation's "Python"."""
    (python,) = (entry for entry in config.nav or [] if "Python" in entry)
    python["Python"] += [{title: address(title)} for title in reference()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the reference and of the notebooks."""
    for title, text in reference().items():
        files.append(File.generated(config, address(title), content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for name, content in notebook_page(Path(str(file.abs_src_path))):
            folder = dirname(file.src_uri)
            files.append(File.generated(config, f"{folder}/{name}", content=content))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to the README or to a notebook to a page of the site."""
    start = relpath("index.md", dirname(page.file.src_uri) or ".")
    return README.sub(f"]({start})", markdown).replace(".ipynb)", ".md)")


def on_page_content(html: str, **_: object) -> str:
    """Let a browser break code in a line after `_`, and no flag at its hyphens."""
    return CODE.sub(lambda code: breakable(code[0]), html)


def breakable(code: str) -> str:
    """HTML of code with marks where lines may end."""
    return FLAG.sub(r'<span class="flag">\g<0></span>', code).replace("_", "_<wbr>")


def address(title: str) -> str:
    """The file of a page of the reference."""
    return f"python/{title.replace(' ', '-')}.md"


def reference() -> dict[str, str]:
    """The text of every page of the reference, by its title."""
    names = {
        verb: [text.partition(":")[2] for form in about.forms for text in form.functions.split()]
        for verb, about in VERBS.items()
    }
    others = set(deconfound.__all__) - {name for found in names.values() for name in found}
    paths = {
        title: [f"deconfound.{name}" for name in found]
        for title, found in {"objects": sorted(others), **names}.items()
    }
    paths["options and results"] = taken_and_returned()
    paths["losses"] = [f"{losses.__name__}.{name}" for name in losses.__all__]
    paths["metrics"] = [
        f"{metrics.__name__}.{module.name}\n    options: {WITHOUT_CONSTANTS}"
        for module in pkgutil.iter_modules(metrics.__path__)
    ]
    paths["what a method is"] = [contract.__name__, f"{contract.__name__}.post_hoc.PostHoc"]
    pages = {
        title: "\n\n".join([f"# {title.capitalize()}", *(f"::: {path}" for path in found)])
        for title, found in paths.items()
        if found
    }
    pages["metrics"] = pages["metrics"].replace("# Metrics\n", f"# Metrics\n\n{metrics_table()}", 1)
    return pages


def taken_and_returned() -> list[str]:
    """The project's own classes that public functions take or return, by their paths."""
    found = {}
    named = {**vars(rows), "AnnData": AnnData}  # which is imported for its type alone
    for name in deconfound.__all__:
        value = getattr(deconfound, name)
        function = value.__init__ if inspect.isclass(value) else value
        for hint in typing.get_type_hints(function, localns=named).values():
            for kind in (hint, *typing.get_args(hint)):
                own = inspect.isclass(kind) and kind.__module__.startswith("deconfound.")
                if own and kind.__name__ not in deconfound.__all__:
                    found[kind.__name__] = f"{kind.__module__}.{kind.__name__}"
    return [path for _, path in sorted(found.items())]


def metrics_table() -> str:
    """Every metric in a row of Markdown."""
    rows = ["| metric | better | range | what it is | paper |", "|---|---|---|---|---|"]
    for metric in all_metrics().values():
        low, high = ("∞" if math.isinf(end) else f"{end:g}" for end in metric.range)
        summary = metric.summary.replace("|", "\\|")
        rows.append(
            f"| `{metric.name}` | {metric.better} | {low} to {high} | {summary} | {metric.paper} |"
        )
    return "\n".join(rows) + "\n"


def notebook_page(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """The page of a notebook and its pictures, each with its name."""
    parts = [f"[Download the notebook]({notebook.name}){{download}}"]
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for part, output in enumerate(cell.outputs):
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{notebook.stem}-{number}-{part}.png"
                yield name, base64.b64decode(picture)
                parts.append(f"![]({name})")
            else:
                parts.append(printed(output))
    yield f"{notebook.stem}.md", "\n\n".join(parts)


def printed(output: Any) -> str:
    """Text or a table that a cell left."""
    data = output.get("data", {})
    table = TABLE.search(data.get("text/html", ""))
    if table:
        return re.sub(r"<table[^>]*>", "<table>", table[0])
    text = output.get("text", data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"
