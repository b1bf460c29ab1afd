"""Names by which a reader recognises a run and its arm, made from the settings that were typed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from mnist_exp.hashing import changes_result

LONGEST = 120  # characters; W&B allows 128


def arm_name(name: str, overrides: Sequence[str]) -> str:
    """The name of all runs with these settings, whatever their seed: ``lenet5 lr=0.05``.

    Args:
        name: of the run, as configured; by default that of its network.
        overrides: all that were typed for it.
    """
    return _cut(_joined(name, filter(changes_result, overrides)))


def run_name(name: str, seed: int, overrides: Sequence[str], varied: Sequence[str] | None = None) -> str:
    """The name of one run: ``lenet5 lr=0.05 seed=1``.

    Args:
        name, overrides: as for ``arm_name``.
        varied: for a job of a sweep, those that differ between the jobs; the others are left out.
    """
    return _cut(f"{_joined(name, filter(changes_result, overrides) if varied is None else varied)} seed={seed}")


def _joined(name: str, overrides: Iterable[str]) -> str:
    settings = {key: value for key, _, value in (word.lstrip("+").partition("=") for word in overrides)}
    # The name says these already.
    implied = [key for key in ("model", "experiment") if settings.get(key, "").replace("/", ".") == name]
    for key in ("seed", "name", *implied):
        settings.pop(key, None)
    last = {key: key.rpartition(".")[2] for key in settings}
    common = Counter(last.values())
    shown = {last[key] if common[last[key]] == 1 else key: value for key, value in settings.items()}
    return " ".join([name, *(f"{key}={value}" if value else key for key, value in shown.items())])


def _cut(text: str) -> str:
    """The text, or its beginning and a digest, so that two long names differ."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 7]}-{digest}"
