"""The file that a W&B run leaves on disk, ``run-ID.wandb``: a seven-byte header, then records as in a LevelDB log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32_768  # bytes; a record's parts never cross one
_HEADER = 7  # bytes, of the file and of every part: checksum (4), length (2), type (1)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(data: bytes) -> Iterator[Any]:
    """The records (``wandb.proto.wandb_internal_pb2.Record``) of a file that was finished, or cut off: what is whole is read.

    Raises:
        ValueError: these are no records.
    """
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # its stub leaves it out

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
                yield record_type.FromString(body)
            except Exception as error:
                raise ValueError(f"no record before byte {position}") from error
            body = b""


def finished_within(seconds: float, path: Path) -> bool:
    """Wait until the record of the run's end is in a file, which is the last one; False if it is not after ``seconds``."""
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
