"""Hypothesis strategies: valid content with a few random changes."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

# JSON and YAML values of every type, with the numbers and texts that readers get wrong most often.
SCALARS = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 10**7, 2**63, 10**400, 1e308, float("inf"), float("nan"), "", "nan", "..", "/etc/passwd"]),
    st.sampled_from(["${oc.env:HOME}", "a\x00b", "\x1b[31m", "=1+1", "\ud800", "x" * 300, "completed", "2026-99-99"]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)  # fmt: skip
json_values = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with one to four bytes changed, parts removed, repeated or inserted; sometimes bytes of another kind."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.one_of(st.integers(1, 8), st.integers(1, max(len(data), 1))))
        match draw(st.sampled_from(["set", "flip", "remove", "repeat", "insert", "cut"])):
            case "set":
                data[start : start + 4] = draw(st.binary(min_size=1, max_size=8))
            case "flip" if data:
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "remove":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + min(length, 1000)]
            case "insert":
                data[start:start] = draw(st.binary(max_size=16))
            case "cut":
                del data[start:]
    return bytes(data)


@st.composite
def mutated_trees(draw: st.DrawFn, tree: dict[str, Any], values: st.SearchStrategy[Any] = json_values) -> Any:
    """A copy of nested dictionaries and lists in which one to three values are replaced, removed, or have another key."""
    changed: Any = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"])):
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = parent.pop(key)
            case _:
                parent[key] = draw(values)
    return changed


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Each dictionary or list in the tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in _places(tree[key])]
