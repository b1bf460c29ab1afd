"""The file that a W&B run leaves on disk, ``run-ID.wandb``: a seven-byte header, then records as in a LevelDB log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_exp.loggers.wandb_private import record_from

_BLOCK = 32_768  # bytes; a record's parts never cross one
_HEADER = 7  # bytes, of the file and of every part: checksum (4), length (2), type (1)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(data: bytes) -> Iterator[Any]:
    """The complete records of a file, which may end in an incomplete one. Each has ``WhichOneof("record_type")``.

    Raises:
        ValueError: the data are not records.
    """
    position, body, inside = _HEADER, b"", False
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part = data[position + _HEADER : position + _HEADER + length]
        if kind not in ((_MIDDLE, _LAST) if inside else (_FULL, _FIRST)):
            raise ValueError(f"no record at byte {position}")
        position += _HEADER + length
        if len(part) < length:
            return
        body += part
        inside = kind in (_FIRST, _MIDDLE)
        if not inside:
            try:
                record = record_from(body)
            except ValueError as error:
                raise ValueError(f"no record before byte {position}") from error
            yield record
            body = b""


def finished_within(seconds: float, path: Path) -> bool:
    """Wait until a file contains the record of the run's end, the last one; False if it does not after ``seconds``."""
    deadline = time.monotonic() + seconds
    size = -1
    while True:
        if path.stat().st_size != size:
            data = path.read_bytes()
            size = len(data)
            if any(record.WhichOneof("record_type") == "exit" for record in records(data)):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
