"""HTML pages: templates that escape, scripts and data packed into the page."""

import base64
import gzip
import hashlib
import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from deconfound.version import __version__

SCRIPTS = ("packed.js", "tables.js", "plots.js")
"""Of every page, in the order in which it runs them, as one script; maps.js of pages with plots."""


STYLES = ("report.css", "sections.css")


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


def packed(text: str) -> Markup:
    """`text` as base64 of gzip, which a page unpacks itself and which cannot hold markup."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode())


def page(template: str, data: dict[str, Any], *, plots: bool, many: bool, **shown: Any) -> str:
    """A whole page of `template`, which extends base.html; it fetches nothing.

    `data` is JSON without NaN, for the scripts. With `plots` the page holds plotly.js. With `many`
    points plotly.js draws by WebGL, whose shaders are compiled by `eval`, so that the page allows
    it; else its Content-Security-Policy allows the page's own scripts alone.
    """
    from plotly.offline import get_plotlyjs

    script = "\n".join(template_text(name) for name in (*SCRIPTS, *["maps.js"] * plots))
    plotly = get_plotlyjs() if plots else ""
    return (
        templates()
        .get_template(template)
        .render(
            version=__version__,
            style=Markup("".join(map(template_text, STYLES))),
            data=packed(json.dumps(data, allow_nan=False, separators=(",", ":"))),
            plotly=packed(plotly) if plotly else "",
            script=Markup(script),
            policy=Markup(_policy([script, plotly], many)),
            **shown,
        )
    )


def _policy(scripts: list[str], evaluates: bool) -> str:
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts if text]
    allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    allowed += ["'unsafe-eval'"] if evaluates else []
    return (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )
