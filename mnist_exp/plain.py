"""Plain data: the only content that a stored configuration may have; read from YAML."""

from __future__ import annotations

from typing import Any

import yaml

from mnist_exp.errors import UsageError, is_unicode

# The C library, if installed, is ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TEXT_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
DEEPEST = 50  # levels; the loaders call themselves for each level, which ends the process if there are thousands
LARGEST_NUMBER = 2**64


def load_yaml(content: bytes | str, *, texts_only: bool = False) -> Any:
    """The data in a YAML file that somebody else may have written; no objects.

    Args:
        texts_only: keep every scalar as it is written, so that 0.990 is not 0.99.

    Raises:
        ValueError: it is no YAML, or nested too deeply, or a value does not have the form of its type. One line.
    """
    try:
        refuse_deep(content)
        return yaml.load(content, TEXT_LOADER if texts_only else LOADER)  # noqa: S506  # neither makes objects
    except Exception as error:
        # The constructors raise many types, such as KeyError for !!bool and ValueError for a 31st of February.
        text = " ".join(str(error).split())
        known = isinstance(error, yaml.YAMLError | ValueError)
        raise ValueError(text if known else f"{type(error).__name__}: {text}") from error


def refuse_deep(content: bytes | str) -> None:
    """Check that a YAML file is not nested too deeply for its other readers.

    Raises:
        ValueError: it has more than ``DEEPEST`` levels.
        yaml.YAMLError: it is no YAML.
    """
    loader, depth = LOADER(content), 0
    try:
        while loader.check_event():
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it has more than {DEEPEST} levels")
    finally:
        loader.dispose()


def refuse_unless_plain(tree: Any) -> None:
    """Check that a configuration is resolved, and holds strings, numbers, lists and dicts only, none of them twice.

    Raises:
        UsageError: it holds an interpolation, ``???``, a YAML alias, a key that is not a string, a NUL character or half of a
            surrogate pair, a whole number of more than 64 bits, or a value of another type.
    """
    seen: set[int] = set()

    def visit(node: Any, path: str) -> None:
        if isinstance(node, str):
            if "${" in node or node == "???":
                found = "an interpolation (${)" if "${" in node else "??? in place of a value"
                raise UsageError(f"{path or 'it'} holds {found}; a stored configuration holds values only")
            if "\0" in node or not is_unicode(node):
                raise UsageError(f"{path or 'it'} holds characters that are no text")
            return
        if isinstance(node, int) and abs(node) > LARGEST_NUMBER:
            raise UsageError(f"{path or 'it'} holds a number of more than 64 bits")
        if node is None or isinstance(node, bool | int | float):
            return
        if not isinstance(node, dict | list):
            raise UsageError(
                f"{path or 'it'} holds a {type(node).__name__}; a stored configuration holds plain data only"
            )
        if node and id(node) in seen:
            raise UsageError(f"{path or 'it'} holds a YAML alias; a stored configuration holds values only")
        seen.add(id(node))
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(node, dict):
                if not isinstance(key, str):
                    raise UsageError(f"{path or 'it'} holds the key {key!r}, which is no string")
                visit(key, path)
            visit(value, f"{path}.{key}" if path else str(key))

    visit(tree, "")
