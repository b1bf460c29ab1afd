"""What goes wrong by a user's hand gets one line: what, where, what is allowed, what to type instead."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class UsageError(Exception):
    """The user asked for something that cannot be. One line a mistake. Exit status 2."""


class RunFailed(Exception):
    """A run ended without a result, and its record says so. One line. Exit status 1."""


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped by a signal; it can be resumed. Exit status 128 plus the signal.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class WrappedError(BaseException):
    """Carries an error out of a callback or a task of Hydra's, which would make a warning of it, or print lines of its own.

    Attributes:
        error: what happened.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def report(error: Exception, command: str = "mnist-train") -> None:
    """Print each line of a message on standard error, behind the command's name."""
    for line in str(error).splitlines():
        print(f"{command}: {printable(line)}", file=sys.stderr)


def printable(line: str) -> str:
    """Text without what a terminal obeys, such as escape sequences in a stranger's record."""
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in line)


def flag_as_override(given: Sequence[str], flag: str, is_override: Callable[[str], bool]) -> tuple[str, str]:
    """Key and value of a flag typed where ``KEY=VALUE`` is meant: ``--batch-size 32``, ``--optimizer.lr=0.1``.

    Args:
        is_override: whether the word behind the flag is a setting of its own, so that the flag stands alone: ``--quiet``.
    """
    name, separator, value = flag.lstrip("-").partition("=")
    if not separator:
        following = list(given[given.index(flag) + 1 :][:1])
        is_value = following and not following[0].startswith("-") and not is_override(following[0])
        value = following[0] if is_value else "true"
    return name.replace("-", "_"), value


def nearest(word: str, words: Iterable[object]) -> str:
    """``; did you mean WORD?`` for a near miss, else nothing."""
    matches = difflib.get_close_matches(word, [str(candidate) for candidate in words], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def keys_with_ending(key: str, tree: Mapping[str, Any]) -> list[str]:
    """The keys anywhere in a tree whose last part is that of this one.

    One that takes its value from another is left out where there are others.
    """
    found = {path: value for path, value in _leaves(tree) if path.rpartition(".")[2] == key.rpartition(".")[2]}
    own = [path for path, value in found.items() if not (isinstance(value, str) and value.startswith("${"))]
    return own or list(found)


def same_ending(key: str, tree: Mapping[str, Any]) -> str:
    """``; did you mean SECTION.KEY?`` for keys of other sections with the same last part, else nothing."""
    names = keys_with_ending(key, tree)[:3]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def near_miss(key: str, tree: Mapping[str, Any]) -> str:
    """``; did you mean SECTION.KEY?`` for a key beside this one, or anywhere in the tree, that is spelled alike."""
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
    """A value as a message shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value)


def typed(key: str, value: Any) -> str:
    """``KEY=VALUE`` as it is typed in a shell: in Hydra's quotes where Hydra wants them, in the shell's where that does.

    ``'hydra.run.dir="r/lr=0.1"'``, ``'model.hidden=[64,64]'``, ``seed=3``.
    """
    return shlex.quote(as_override(key, value))


def as_override(key: str, value: Any) -> str:
    """``KEY=VALUE`` as Hydra reads it: ``hydra.run.dir="r/lr=0.1"``."""
    return f"{key}={_in_hydras_quotes(value)}"


def _in_hydras_quotes(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_in_hydras_quotes(item) for item in value) + "]"
    if not isinstance(value, str | PurePath):
        return as_typed(value)
    text = str(value)
    if re.fullmatch(r"[\w./:+%@*?|-]+( [\w./:+%@*?|-]+)*", text, re.ASCII) and text.lower() not in WORDS:
        return text
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def unquoted(text: str) -> str:
    """A value without the quotes that Hydra would take off, too."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"(\\+)(?=[\"']|$)", lambda found: "\\" * (len(found[1]) // 2), text[1:-1])
    return text


# What Hydra takes for something else than text.
WORDS = {"null", "true", "false"}
# Kinds of pydantic's errors, of a model and of a call.
MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
NO_LIST = {"list_type", "is_instance_of", "sequence_str"}
# A regular expression is no explanation.
PATTERNS = {
    "trainer.device": "should be auto, cpu, cuda, cuda:N or mps",
    "name": "should be letters, digits and . _ + = , - only, 100 at most",
}


def explain_validation(
    error: ValidationError,
    tree: Mapping[str, Any],
    elsewhere: Callable[[str], str] = lambda key: "",
    within: tuple[str, ...] = (),
) -> list[str]:
    """What the schema, or a constructor, refuses, once for each mistake.

    A value that other sections read by interpolation is wrong there too; only the first place is named, and the schema
    has the sections in that order.

    Args:
        elsewhere: says of an unknown key which choices would have it, or nothing.
        within: the section that holds the arguments of a constructor.
    """
    lines: dict[tuple[str, str], str] = {}
    for item in error.errors():
        path = _path((*within, *item["loc"]), tree)
        if item["type"] in MISSING:
            path.append(str(item["loc"][-1]))
        key, last = ".".join(path), path[-1]
        if item["type"] in UNKNOWN:
            others = _without(tree, path)
            message = f"{key} is not a key{same_ending(key, others) or elsewhere(key) or near_miss(key, others)}"
        elif item["type"] in MISSING:
            message = f"{key} is missing"
        else:
            message = f"{key}={as_typed(item['input'])} {_allowed(key, item['type'], item['msg'], item['input'])}"
        lines.setdefault((last, message.partition("=")[2] or message), message)
    return list(lines.values())


def _allowed(key: str, kind: str, message: str, value: Any) -> str:
    """What a value should be."""
    if kind == "string_pattern_mismatch" and key in PATTERNS:
        return PATTERNS[key]
    if kind in NO_LIST and value is None:
        return f"should be a list; none of it: {typed(key, [])}"
    if kind in NO_LIST and not isinstance(value, Mapping):
        return f"should be a list: {typed(key, [value])}"
    if key.partition(".")[0] == "callbacks" and kind in {"model_type", "model_attributes_type", "dict_type"}:
        if key == "callbacks":
            return f"is not there: no folder of configuration files has callbacks/{as_typed(value)}.yaml"
        name = "NAME" if key == "callbacks._target_" else key.partition(".")[2]
        return f"should be a section with a _target_; type +callbacks.{name}._target_=my_module.MyCallback"
    if kind in {"model_type", "model_attributes_type"}:
        return f"should be a section of keys; choose a whole one with {key}=CHOICE"
    if kind in {"too_short", "too_long"} and (number := re.search(r"at (?:least|most) (\d+)", message)):
        return f"should have {number[1]} values"
    return message.removeprefix("Input ").removeprefix("Value error, ").replace("'", "")


def _path(location: tuple[int | str, ...], tree: Any) -> list[str]:
    """The keys in a pydantic location that lead through the tree; the others name branches of unions."""
    path, node = [], tree
    for part in location:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        if inside:
            path.append(str(part))
            node = node[part]
    return path


def _without(tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The tree less one key."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    inside = tree[first]
    return {**tree, first: _without(inside, rest)} if isinstance(inside, Mapping) else dict(tree)
