"""The forms that the image files of an ingest had, for its provenance and its last lines."""

from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import BaseModel, ValidationError

from deconfound.data.readers.axes import Taken
from deconfound.data.readers.resizing import Fit, Sides
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.files import atomic


class Forms(BaseModel, extra="forbid"):
    """How the axes of the files were taken, and the smallest and largest height and width."""

    axes: list[Taken]
    """Each way once, that of the first file first."""
    smallest: Sides
    largest: Sides

    def provenance(self) -> dict[str, Any]:
        """The fields that `screen.json` records; they do not depend on the order of reading."""
        first, *others = (taken.model_dump() for taken in self.axes)
        return {
            "axes": [first, *sorted(others, key=lambda taken: [str(v) for v in taken.values()])],
            "sizes": {"smallest": list(self.smallest), "largest": list(self.largest)},
        }


class FormsRead:
    """Gathers the forms of files as threads read them, and keeps them for a call that resumes."""

    def __init__(self) -> None:
        self.found: Forms | None = None
        self._lock = Lock()
        self._note: Path | None = None

    def add(self, taken: Taken, sides: Sides) -> None:
        """Add the form of one file."""
        self._join(Forms(axes=[taken], smallest=sides, largest=sides))

    def keep(self, note: Path) -> None:
        """Add the forms that an earlier call left in the file `note`, and leave all there."""
        with suppress(FileNotFoundError, ValidationError):
            self._join(Forms.model_validate_json(note.read_bytes()))
        if self.found is not None:
            atomic.write_text(note, self.found.model_dump_json())
        self._note = note

    def _join(self, new: Forms) -> None:
        with self._lock:
            known = self.found
            if known is not None:
                both = [*known.axes, *(taken for taken in new.axes if taken not in known.axes)]
                new = Forms(
                    axes=both,
                    smallest=_each(min, known.smallest, new.smallest),
                    largest=_each(max, known.largest, new.largest),
                )
            if new != known:
                self.found = new
                if self._note is not None:
                    atomic.write_text(self._note, new.model_dump_json())


def fitting(sides: Sides, fit: Fit | None) -> dict[str, Any]:
    """The provenance of images brought to `sides`; "asked" is whether the user said how."""
    how = fit or "resize"
    return {"how": how, "height": sides[0], "width": sides[1], "asked": fit is not None}


def form_lines(screen: Screen) -> list[str]:
    """What an ingest says of the images it read: channels, axes and changes of size.

    Lines that begin with "warning: " are to be seen with --quiet too. Empty for profiles.
    """
    made = screen.provenance
    if screen.holds_profiles or "axes" not in made:
        return []
    count, height, width = screen.image_shape
    named = listed(screen.channels)
    lines = [f"{count} channel{'s' * (count > 1)} ({named}), {height} × {width} pixels"]
    for taken in map(Taken.model_validate, made["axes"]):
        what = f"{taken.kind} {taken.axes} taken as {taken.taken}: {taken.why}"
        guess = f"warning: axes guessed, {what}; if they are wrong, name as many --channels"
        lines.append(guess if taken.guessed else f"axes {what}")
    if any(taken["alpha_dropped"] for taken in made["axes"]):
        lines.append("warning: transparency (alpha) was dropped; --channels that count it keep it")
    if "fit" in made:
        lines.append(_size_line(made["fit"], made["sizes"]))
    return list(dict.fromkeys(lines))


def _size_line(fit: dict[str, Any], sizes: dict[str, list[int]]) -> str:
    (least, narrowest), (most, widest) = sizes["smallest"], sizes["largest"]
    height, width = fit["height"], fit["width"]
    of_one = (least, narrowest) == (most, widest)
    given = f"{least} × {narrowest}" + ("" if of_one else f" to {most} × {widest}")
    done = {"resize": "resized", "pad": "padded with 0", "crop": "cropped"}[fit["how"]]
    said = f"images of {given} pixels were {done} to {height} × {width}"
    if fit["asked"] or (of_one and least * width == narrowest * height):
        return said
    harm = "stretches them" if of_one else "destroys their scale"
    return (
        f"warning: {said}, which {harm}; --fit pad or crop keeps the scale, --fit resize says that "
        "it is meant"
    )


def _each(choose: Any, one: Sides, other: Sides) -> Sides:
    return choose(one[0], other[0]), choose(one[1], other[1])
