"""HTML pages: templates that escape, and files inside the page."""

import base64
from importlib import resources

import jinja2


def templates() -> jinja2.Environment:
    """The package's templates; every value put into one is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("deconfound"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template_text(name: str) -> str:
    """The text of a style sheet or script, which goes into a page unchanged."""
    return (resources.files("deconfound") / "templates" / name).read_text(encoding="utf-8")


def data_uri(kind: str, content: bytes) -> str:
    """A data URI of `content`, of media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
