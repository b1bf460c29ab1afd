"""The pages of the live report that show the text files of a run directory.

They are plain text, whatever a file contains, and no link is followed: the directory may be another person's.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

from mnist_exp.errors import printable
from mnist_exp.runs.files import open_file

SHOWN = {".json", ".jsonl", ".yaml", ".log", ".txt"}  # suffixes of text files
MOST = 2_000_000  # bytes of a file that are shown: its end
STYLE = (
    ":root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 60rem; "
    "padding: 0 1rem; overflow-wrap: anywhere } h1 { font-size: 1.3rem } td { padding: .15rem 1.5rem .15rem 0 } "
    "td + td { text-align: right; font-variant-numeric: tabular-nums }"
)


def address(directory: str) -> str:
    """The address of the page of a run directory, relative to that of the report."""
    return f"run/{hashlib.sha256(printable(directory).encode()).hexdigest()[:16]}/"


def listing(directory: Path, title: str) -> str:
    """The page of a run directory: its files, those of text as links.

    Raises:
        OSError: it was deleted.
    """
    rows = "".join(
        f"<tr><td>{_linked(name)}</td><td>{size:,} bytes</td><td>{datetime.fromtimestamp(changed, UTC):%Y-%m-%d %H:%M:%S} UTC"
        "</td></tr>"
        for name, size, changed in _files(directory)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>'
        f'<p>{escape(printable(str(directory)))}</p><table>{rows}</table><p><a href="../../">the report</a></p>'
    )


def text(directory: Path, name: str) -> bytes | None:
    """The end of a text file of a run directory; None if there is none of this name.

    Raises:
        RunDirectoryError, OSError: it cannot be read.
    """
    if Path(name).suffix not in SHOWN or all(name != known for known, _, _ in _files(directory)):
        return None
    with open_file(directory / name) as file:
        file.seek(max(os.fstat(file.fileno()).st_size - MOST, 0))
        content: bytes = file.read(MOST)
    return content


def _files(directory: Path) -> Iterator[tuple[str, int, float]]:
    """Name, bytes and time of change of each regular file."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        known = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(known.st_mode) and not entry.name.startswith("."):
            yield entry.name, known.st_size, known.st_mtime


def _linked(name: str) -> str:
    shown = escape(printable(name))
    return f'<a href="{escape(quote(name))}">{shown}</a>' if Path(name).suffix in SHOWN else shown
