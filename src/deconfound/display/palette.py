"""Colours of groups that stay apart for colour-blind eyes, on white and on dark paper."""

FEW = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800")
"""For up to 7 groups: Okabe & Ito 2008, without black and with a darker yellow."""
MANY = (
    "#4884a8", "#f0cc00", "#840018", "#6ce4fc", "#540c9c", "#907800", "#fc9078", "#0000fc",
    "#a8a8e4", "#a8306c", "#4890fc", "#8430c0", "#fc00a8", "#c0d8a8", "#78a824", "#b4606c",
    "#6cc0a8", "#6c246c", "#d854d8", "#845418",
)  # fmt: skip
"""For up to 20 groups: two of them are at least 0.10 apart in OKLab (Ottosson 2020), and 0.077 as
seen without red, green or blue cones (Machado et al. 2009); 0.02 can just be seen."""
OTHER = "#9aa3ab"
"""Groups beyond the last colour, and rows without a value."""


def colours(groups: int) -> tuple[str, ...]:
    """The colours of `groups` groups, in their order; those beyond the 20th are all `OTHER`."""
    chosen = FEW if groups <= len(FEW) else MANY
    return (*chosen[:groups], *[OTHER] * (groups - len(chosen)))
