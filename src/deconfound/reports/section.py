"""What a further section of a report is: a heading, markup that is safe, and plots."""

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """One section of the page, between two rules, with its entry in the navigation."""

    title: str
    """Heading, and words of the navigation; escaped by the page."""
    anchor: str
    """Id of the section in the page: letters, digits and hyphens."""
    html: Markup
    """What stands under the heading; every name in it escaped (a template, or `Markup.format`)."""
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Plots by the id of their place: `data` and `layout` for plotly.js. The place is
    `<figure><figcaption>TITLE</figcaption><div class="plot" id="ID"></div></figure>` in `html`."""
