"""What Weights & Biases has on disk of a run: its process loses what it had in hand when killed."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, PREFIX = 7, 32768, 7
"""Bytes of a LevelDB log: before its blocks, of a block, and before each piece of a record."""
FIRST, MIDDLE = 2, 3
"""Kinds of pieces that another one follows."""


def logged(directory: Path, run: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and values of each entry of an offline run's history, of all processes that wrote it."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted((directory / "wandb").glob(f"offline-run-*-{run}/*.wandb")):
        for content in _records(file.read_bytes()):
            record = Record.FromString(content)
            values = {
                one.key or "/".join(one.nested_key): json.loads(one.value_json)
                for one in record.history.item
            }
            if values:
                yield int(values.get("_step", record.history.step.num)), values


def _records(log: bytes) -> Iterator[bytes]:
    """The whole records of a log, whose last one may be cut off."""
    place, whole = HEADER, b""
    while place + PREFIX <= len(log):
        left = BLOCK - place % BLOCK
        if left < PREFIX:
            place += left
            continue
        size, kind = struct.unpack("<HB", log[place + 4 : place + PREFIX])
        piece = log[place + PREFIX : place + PREFIX + size]
        if len(piece) < size or kind == 0:
            return
        whole += piece
        place += PREFIX + size
        if kind not in (FIRST, MIDDLE):
            yield whole
            whole = b""
