"""The forms that the image files of an ingest had, for its provenance and its last lines."""

import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import BaseModel, ValidationError

from deconfound.data.readers.axes import Taken
from deconfound.data.readers.resizing import Fit, Sides
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import InputWarning
from deconfound.files import atomic

ARRAY = "array"
"""The kind of one array that holds all images."""


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
        self._found: Forms | None = None
        self._lock = Lock()
        self._note: Path | None = None

    def __reduce__(self) -> tuple[type["FormsRead"], tuple[()]]:
        """In another process: with nothing found, since that process tells what it finds."""
        return FormsRead, ()

    @property
    def found(self) -> Forms | None:
        """The forms added so far."""
        return self._found

    def join(self, new: Forms | None) -> None:
        """Add the forms that another process has found."""
        if new is not None:
            self._join(new)

    def add(self, taken: Taken, sides: Sides) -> None:
        """Add the form of one file."""
        known = self._found
        if (
            known is None
            or taken not in known.axes
            or _each(min, sides, known.smallest) != known.smallest
            or _each(max, sides, known.largest) != known.largest
        ):
            self._join(Forms(axes=[taken], smallest=sides, largest=sides))

    def provenance(self) -> dict[str, Any]:
        """The provenance of all forms added."""
        assert self._found is not None
        return self._found.provenance()

    def keep(self, note: Path) -> None:
        """Add the forms that an earlier call left in the file `note`, and leave all there."""
        with suppress(FileNotFoundError, ValidationError):
            self._join(Forms.model_validate_json(note.read_bytes()))
        if self._found is not None:
            atomic.write_text(note, self._found.model_dump_json())
        self._note = note

    def _join(self, new: Forms) -> None:
        with self._lock:
            known = self._found
            if known is not None:
                both = [*known.axes, *(taken for taken in new.axes if taken not in known.axes)]
                new = Forms(
                    axes=both,
                    smallest=_each(min, known.smallest, new.smallest),
                    largest=_each(max, known.largest, new.largest),
                )
            if new != known:
                self._found = new
                if self._note is not None:
                    atomic.write_text(self._note, new.model_dump_json())


def fitting(sides: Sides, fit: Fit | None) -> dict[str, Any]:
    """The provenance of images brought to `sides`; "asked" is whether the user said how."""
    how = fit or "resize"
    return {"how": how, "height": sides[0], "width": sides[1], "asked": fit is not None}


def form_lines(screen: Screen) -> list[str]:
    """The channels, axes and sizes that an ingest took, for its last lines; none for profiles."""
    made = screen.provenance
    if screen.holds_profiles or "axes" not in made:
        return []
    count, height, width = screen.image_shape
    named = listed(screen.channels)
    lines = [f"{count} channel{'s' * (count > 1)} ({named}), {height} × {width} pixels"]
    lines += [f"axes {_said(taken)}" for taken in map(Taken.model_validate, made["axes"])]
    if "fit" in made:
        lines.append(_sizes(made))
    return list(dict.fromkeys(lines))


def warn_of_forms(made: dict[str, Any], where: str) -> None:
    """An InputWarning for axes guessed, for dropped transparency and for a scale that is changed.

    `made` is the provenance of a screen, `where` the table or folder that the images come from.
    """
    said = []
    for taken in map(Taken.model_validate, made["axes"]):
        if taken.guessed:
            remedy = "if that is wrong, name as many --channels as there are"
            if taken.kind == ARRAY:
                remedy += ", or give --array-axes"
            said.append(f"axes are guessed, {_said(taken)}; {remedy}")
    if any(taken["alpha_dropped"] for taken in made["axes"]):
        said.append("transparency (alpha) is dropped; name as many --channels to keep it")
    fit, (smallest, largest) = made.get("fit"), made["sizes"].values()
    if fit is not None and not fit["asked"]:
        stretched = smallest[0] * fit["width"] != smallest[1] * fit["height"]
        if smallest != largest or stretched:
            harm = "stretches them" if smallest == largest else "destroys their scale"
            said.append(
                f"{_sizes(made)}, which {harm}; --fit pad or crop keeps the scale, --fit resize "
                "says that it is meant"
            )
    for line in said:
        warnings.warn(f"{where}: {line}", InputWarning, stacklevel=4)


def _said(taken: Taken) -> str:
    return f"{taken.kind} {taken.axes} taken as {taken.taken}: {taken.why}"


def _sizes(made: dict[str, Any]) -> str:
    fit, ((least, narrowest), (most, widest)) = made["fit"], made["sizes"].values()
    given = f"{least} × {narrowest}"
    if (least, narrowest) != (most, widest):
        given += f" to {most} × {widest}"
    done = {"resize": "resized", "pad": "padded with 0", "crop": "cropped"}[fit["how"]]
    return f"images of {given} pixels are {done} to {fit['height']} × {fit['width']}"


def _each(choose: Any, one: Sides, other: Sides) -> Sides:
    return choose(one[0], other[0]), choose(one[1], other[1])
