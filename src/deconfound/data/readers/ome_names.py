"""The names of the channels that an OME-TIFF declares."""

from pathlib import Path
from xml.etree import ElementTree

import tifffile


def ome_channel_names(file: Path, count: int) -> tuple[str, ...] | None:
    """The names of `count` channels; None where a file is no OME-TIFF or does not name them all.

    Names that are empty, given twice or not printable do not count, nor does one name for all
    channels of an RGB image.
    """
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            described = tiff.ome_metadata
        if described is None:
            return None
        root = ElementTree.fromstring(described)
    except (tifffile.TiffFileError, OSError, ValueError, ElementTree.ParseError):
        return None
    images = [found for found in root.iter() if _tag(found) == "Pixels"]
    if len(images) != 1:
        return None
    channels = [found for found in images[0] if _tag(found) == "Channel"]
    names = tuple(channel.get("Name", "").strip() for channel in channels)
    fit = all(name and name.isprintable() for name in names) and len(set(names)) == len(names)
    return names if fit and len(names) == count else None


def _tag(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
