"""Plain data: the only content that a stored configuration may have."""

from __future__ import annotations

from typing import Any

from mnist_exp.errors import UsageError


def refuse_unless_plain(tree: Any) -> None:
    """Check that a configuration is resolved, and holds strings, numbers, lists and dicts only, none of them twice.

    Raises:
        UsageError: it holds an interpolation, ``???``, a YAML alias, a key that is not a string, or a value of another type.
    """
    seen: set[int] = set()

    def visit(node: Any, path: str) -> None:
        if isinstance(node, str):
            if "${" in node or node == "???":
                found = "an interpolation (${)" if "${" in node else "??? in place of a value"
                raise UsageError(f"{path or 'it'} holds {found}; a stored configuration holds values only")
            return
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
