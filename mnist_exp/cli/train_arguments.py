"""The flags of ``mnist-train``: Hydra's, anywhere among the overrides. One that is none of them was meant as an override."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mnist_exp.cli.arguments import ArgumentParser, add_trust
from mnist_exp.compose import CONF, groups, hydra_flags
from mnist_exp.errors import flag_as_override, keys_with_ending, nearest, typed

# What --info takes.
INFORMATION = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


class TrainParser(ArgumentParser):
    """Hydra's flags. One that is none of them was meant as an override."""

    def __init__(self) -> None:
        super().__init__(prog="mnist-train", example="mnist-train KEY=VALUE", parents=[hydra_flags()], add_help=False)
        add_trust(self)

    def _explain_unknown(self, given: Sequence[str], flag: str) -> str:
        config, known = _default_config(), groups()

        def is_setting(word: str) -> bool:
            key = word.partition("=")[0]
            return "=" in word and (key in known or _has(config, key))

        name, value = flag_as_override(given, flag, is_setting)
        keys = [name] if is_setting(f"{name}=") else keys_with_ending(name, config)
        if keys:
            advice = f"; type {_as_typed_before(keys[0], value)}"
        else:
            advice = nearest(flag.partition("=")[0], self.options())
        return f"{flag} is not an option of mnist-train{advice or '; settings are typed KEY=VALUE, and mnist-train --cfg job lists them'}"


def _as_typed_before(key: str, value: str) -> str:
    """An override from what stood behind a flag, which may be a list already."""
    return (
        shlex.quote(f"{key}={value}")
        if value[:1] in {"[", "{"} or value in {"true", "false", "null"}
        else typed(key, value)
    )


def _default_config() -> dict[str, Any]:
    """What ``mnist-train`` alone amounts to, unresolved."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = OmegaConf.to_container(compose("train"), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _has(tree: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(tree, dict) and first in tree and (not rest or _has(tree[first], rest))


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, and ``overrides``.

    Raises:
        SystemExit: with 2 for a flag that there is not; with 0 after ``--version``.
    """
    following = [*arguments, ""][1:]
    # --info may stand alone, and would take the override behind it for its value.
    alone = [
        f"{word}=all"
        if word == "--info" and after not in INFORMATION
        else "-iall"
        if word == "-i" and after not in INFORMATION
        else word
        for word, after in zip(arguments, following, strict=True)
    ]
    options = TrainParser().parse(alone)
    if options.trust:
        options.overrides.append(f"trust=[{','.join(options.trust)}]")
    return options
