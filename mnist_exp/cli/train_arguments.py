"""The command line of ``mnist-train``: Hydra's flags, before, between or after the overrides."""

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

# Values of --info.
INFORMATION = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


class TrainParser(ArgumentParser):
    """Hydra's flags and ``--trust``. For an unknown flag an override is suggested."""

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
        advice = f"; type {_suggestion(keys[0], value)}" if keys else nearest(flag.partition("=")[0], self.options())
        return f"{flag} is not an option of mnist-train{advice or '; settings are typed KEY=VALUE, and mnist-train --cfg job lists them'}"


def _suggestion(key: str, value: str) -> str:
    """The override for a key and the value of a flag, which may be a list already."""
    return (
        shlex.quote(f"{key}={value}")
        if value[:1] in {"[", "{"} or value in {"true", "false", "null"}
        else typed(key, value)
    )


def _default_config() -> dict[str, Any]:
    """The configuration of ``mnist-train`` without overrides, unresolved."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = OmegaConf.to_container(compose("train"), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _has(tree: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(tree, dict) and first in tree and (not rest or _has(tree[first], rest))


def topics_of(arguments: Sequence[str], options: argparse.Namespace) -> list[str]:
    """The words behind ``--help``; overrides before it are those of a command that the user wanted to run."""
    flags = [place for place, word in enumerate(arguments) if word in {"--help", "-h"}]
    return [word for word in arguments[flags[0] + 1 :] if word in options.overrides] if flags else []


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The values of Hydra's flags, and the list ``overrides``.

    Raises:
        SystemExit: status 2 for an unknown flag, 0 after ``--version``.
    """
    # --info needs no value, but argparse would take the next override as its value.
    following = [*arguments, ""][1:]
    with_value = {"--info": "--info=all", "-i": "-iall"}
    words = [
        with_value.get(word, word) if after not in INFORMATION else word
        for word, after in zip(arguments, following, strict=True)
    ]
    options = TrainParser().parse(words)
    if options.trust:
        options.overrides.append(f"trust=[{','.join(options.trust)}]")
    return options
