"""Exceptions, and messages about users' mistakes: one line each, with what, where, what is allowed, what to type instead."""

from __future__ import annotations

import difflib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class UsageError(Exception):
    """A mistake of the user, or several: one line each. Exit status 2."""


class RunFailed(Exception):
    """A run failed or diverged, as its record shows. One line. Exit status 1."""


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped by a signal; it can be resumed. Exit status 128 plus the number of the signal.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class WrappedError(BaseException):
    """Contains an error of a callback or a task, because Hydra catches exceptions, but no ``BaseException``.

    Attributes:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def report(error: Exception, command: str = "mnist-train") -> None:
    """Print a message on standard error, the command's name before each line."""
    for line in str(error).splitlines():
        print(f"{command}: {printable(line)}", file=sys.stderr)


def print_any_text() -> None:
    """Let standard output show as escapes what its encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="backslashreplace")


def is_unicode(text: str) -> bool:
    """Whether the text can be stored: a file name whose bytes could not be decoded cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(line: str) -> str:
    """The text with control characters escaped, so that a stranger's record cannot control the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in line)


def flag_as_override(given: Sequence[str], flag: str, is_override: Callable[[str], bool]) -> tuple[str, str]:
    """Key and value of a flag that was typed instead of ``KEY=VALUE``: ``--batch-size 32``, ``--optimizer.lr=0.1``.

    Args:
        given: all arguments.
        is_override: whether a word is an override; if the word after the flag is one, the flag has no value: ``--quiet``.
    """
    name, separator, value = flag.lstrip("-").partition("=")
    if not separator:
        following = list(given[given.index(flag) + 1 :][:1])
        is_value = following and not following[0].startswith("-") and not is_override(following[0])
        value = following[0] if is_value else "true"
    return name.replace("-", "_"), value


def nearest(word: str, words: Iterable[object]) -> str:
    """``; did you mean WORD?`` for the most similar of the words, else nothing."""
    matches = difflib.get_close_matches(word, [str(candidate) for candidate in words], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def keys_with_ending(key: str, tree: Mapping[str, Any]) -> list[str]:
    """The keys in a tree with the same last part; without keys whose value is an interpolation, if there are others."""
    found = {path: value for path, value in _leaves(tree) if path.rpartition(".")[2] == key.rpartition(".")[2]}
    own = [path for path, value in found.items() if not (isinstance(value, str) and value.startswith("${"))]
    return own or list(found)


def same_ending(key: str, tree: Mapping[str, Any]) -> str:
    """``; did you mean SECTION.KEY?`` for keys with the same last part, else nothing."""
    names = keys_with_ending(key, tree)[:3]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def near_miss(key: str, tree: Mapping[str, Any]) -> str:
    """``; did you mean SECTION.KEY?`` for a key of similar spelling, first in the same section, else nothing."""
    section, _, last = key.rpartition(".")
    siblings = [path for path, _ in _nodes(tree) if path.rpartition(".")[0] == section]
    for paths in (siblings, [path for path, _ in _leaves(tree)]):
        endings = {path.rpartition(".")[2]: path for path in reversed(paths)}
        if matches := difflib.get_close_matches(last, endings, n=1, cutoff=0.6 if paths is siblings else 0.75):
            return f"; did you mean {endings[matches[0]]}?"
    return ""


def _nodes(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _nodes(value, f"{prefix}{key}.")


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((path, value) for path, value in _nodes(tree) if not isinstance(value, Mapping))


def as_typed(value: Any) -> str:
    """A value as text for messages: ``null``, ``true``, ``[64,64]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value)


def typed(key: str, value: Any) -> str:
    """``KEY=VALUE`` for a shell, with quotes of Hydra and of the shell where they are needed.

    ``'hydra.run.dir="r/lr=0.1"'``, ``'model.hidden=[64,64]'``, ``seed=3``.
    """
    return shlex.quote(as_override(key, value))


def as_override(key: str, value: Any) -> str:
    """``KEY=VALUE`` for Hydra, quoted where it is needed: ``hydra.run.dir="r/lr=0.1"``."""
    return f"{key}={_in_hydras_quotes(value)}"


def _in_hydras_quotes(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_in_hydras_quotes(item) for item in value) + "]"
    if not isinstance(value, str | PurePath):
        return as_typed(value)
    text = str(value)
    if re.fullmatch(r"[\w./:+%@*?|-]+( [\w./:+%@*?|-]+)*", text, re.ASCII) and text.lower() not in NOT_TEXT:
        return text
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def unquoted(text: str) -> str:
    """A value without Hydra's quotes."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"(\\+)(?=[\"']|$)", lambda found: "\\" * (len(found[1]) // 2), text[1:-1])
    return text


# Words that Hydra does not read as text.
NOT_TEXT = {"null", "true", "false"}
NUMBER = re.compile(r"[-+]?\d+|[-+]?\d*\.\d*(e[-+]?\d+)?", re.IGNORECASE)
# Types of pydantic's errors, of a model and of a call.
MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
NO_LIST = {"list_type", "is_instance_of", "sequence_str"}
# Instead of pydantic's message, which shows the regular expression.
PATTERNS = {
    "trainer.device": "should be auto, cpu, cuda, cuda:N or mps",
    "name": "should be letters, digits and . _ + = , - only, 100 at most",
}


def explain_validation(
    error: ValidationError,
    tree: Mapping[str, Any],
    hint: Callable[[str], str] = lambda key: "",
    within: tuple[str, ...] = (),
    *,
    typed_by_user: bool = True,
) -> list[str]:
    """One line for each mistake that pydantic found in the configuration or in the arguments of a constructor.

    If other sections interpolate a wrong value, only its first place is named.

    Args:
        tree: the configuration that was checked.
        hint: returns a hint for an unknown key, or nothing.
        within: the path of the section whose constructor was called.
        typed_by_user: also say what to type instead.
    """
    lines: dict[tuple[str, str], str] = {}
    for item in error.errors():
        path = _path((*within, *item["loc"]), tree)
        if item["type"] in MISSING:
            path.append(str(item["loc"][-1]))
        key, last = ".".join(path), path[-1]
        if item["type"] in UNKNOWN:
            others = _without(tree, path)
            message = f"{key} is not a key{same_ending(key, others) or hint(key) or near_miss(key, others)}"
        elif item["type"] in MISSING:
            message = f"{key} is missing"
        else:
            value = item["input"]
            # With quotes, because the mistake may be that a number is in quotes.
            shown = f'"{value}"' if isinstance(value, str) and NUMBER.fullmatch(value) else as_typed(value)
            allowed = _allowed(key, item["type"], item["msg"], value) if typed_by_user else _plain(item["msg"])
            message = f"{key}={shown} {allowed}"
        lines.setdefault((last, message.partition("=")[2] or message), message)
    return list(lines.values())


def _allowed(key: str, kind: str, message: str, value: Any) -> str:
    """The second half of the message: the allowed values."""
    if kind == "string_pattern_mismatch" and key in PATTERNS:
        return PATTERNS[key]
    if kind in NO_LIST and value is None:
        return f"should be a list; for an empty one type {typed(key, [])}"
    if kind in NO_LIST and not isinstance(value, Mapping):
        return f"should be a list: {typed(key, [value])}"
    if key.partition(".")[0] == "callbacks" and kind in {"model_type", "model_attributes_type", "dict_type"}:
        if key == "callbacks":
            return f"does not exist: no folder of configuration files has callbacks/{as_typed(value)}.yaml"
        name = "NAME" if key == "callbacks._target_" else key.partition(".")[2]
        return f"should be a section with a _target_; type +callbacks.{name}._target_=my_module.MyCallback"
    if kind in {"model_type", "model_attributes_type"}:
        return f"should be a section of keys; choose a whole one with {key}=CHOICE"
    if kind in {"too_short", "too_long"} and (number := re.search(r"at (?:least|most) (\d+)", message)):
        return f"should have {number[1]} values"
    return _plain(message)


def _plain(message: str) -> str:
    """pydantic's message as the second half of a line."""
    return message.removeprefix("Input ").removeprefix("Value error, ").replace("'", "")


def _path(location: tuple[int | str, ...], tree: Any) -> list[str]:
    """The keys in a pydantic location that are keys of the tree; the others are tags of unions."""
    path, node = [], tree
    for part in location:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        if inside:
            path.append(str(part))
            node = node[part]
    return path


def _without(tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """A copy of the tree without one key."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    inside = tree[first]
    return {**tree, first: _without(inside, rest)} if isinstance(inside, Mapping) else dict(tree)
