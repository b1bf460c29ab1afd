"""What goes wrong by a user's hand gets one line: what, where, what is allowed, what to type instead."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class UsageError(Exception):
    """The user asked for something that cannot be. One line a mistake. Exit status 2."""


class RunFailed(Exception):
    """A run ended without a result, and its record says so. One line. Exit status 1."""


def report(error: Exception, command: str = "mnist-train") -> None:
    """Print each line of a message on standard error, behind the command's name."""
    for line in str(error).splitlines():
        print(f"{command}: {line}", file=sys.stderr)


def nearest(word: str, words: Iterable[object]) -> str:
    """``; did you mean WORD?`` for a near miss, else nothing."""
    matches = difflib.get_close_matches(word, [str(candidate) for candidate in words], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def as_typed(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value)


# A regular expression is no explanation.
PATTERNS = {
    "trainer.device": "should be auto, cpu, cuda, cuda:N or mps",
    "name": "should be letters, digits and . _ + = , - only, 100 at most",
}


def explain_validation(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    """What the schema refuses, once for each mistake.

    A value that other sections read by interpolation is wrong there too; only the first place is named, and the schema
    has the sections in that order.
    """
    lines: dict[tuple[str, str], str] = {}
    for item in error.errors():
        path = _path(item["loc"], tree)
        key, last = ".".join(path), path[-1]
        if item["type"] == "extra_forbidden":
            siblings = _fields(tree, path[:-1]) - {last}
            message = f"{key} is not a key{nearest(last, siblings)}"
        elif item["type"] == "missing":
            message = f"{key}.{item['loc'][-1]} is missing"
        else:
            allowed = item["msg"].removeprefix("Input ").replace("'", "")
            if item["type"] == "string_pattern_mismatch":
                allowed = PATTERNS.get(key, allowed)
            if item["type"] == "list_type" and not isinstance(item["input"], Mapping):
                allowed = f"should be a list: {key}=[{as_typed(item['input'])}]"
            message = f"{key}={as_typed(item['input'])} {allowed}"
        lines.setdefault((last, message.partition("=")[2] or message), message)
    return list(lines.values())


def _path(location: tuple[int | str, ...], tree: Any) -> list[str]:
    """The keys in a pydantic location that lead through the tree; the others name branches of unions."""
    path, node = [], tree
    for part in location:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        if inside:
            path.append(str(part))
            node = node[part]
    return path


def _fields(tree: Any, path: list[str]) -> set[str]:
    for part in path:
        tree = tree[int(part) if isinstance(tree, list) else part]
    return {str(key) for key in tree}
