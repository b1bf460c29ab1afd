"""The hash of a configuration: equal for runs that compute the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mnist_exp.config import Component, Config, Data

# Settings that do not change what is computed: name, device, logger, folder of the data.
NOT_HASHED = (
    *("name", "resume", "quiet", "show_layers", "logger", "sweep", "trust"),
    *("trainer.device", "trainer.threads", "trainer.backend", "trainer.profile", "data.root"),
)
# Runs without a version have version 1, in which 10 and 10.0 have different hashes, and a key that is absent and one that
# has its default value, too.
HASH_VERSION = 2

# Arguments that a network got later, with the value that changes nothing: earlier runs do not have them.
ADDED_LATER: Mapping[str, Mapping[str, Any]] = {"mnist_exp.models.MLP": {"pooling": 1}}


def hashed_config(config: Config, *, defaults: bool = True) -> dict[str, Any]:
    """The settings that determine what is computed: all except ``NOT_HASHED`` and our loggers.

    The folder of the data is included if nothing else identifies the data. Whole numbers are int.

    Args:
        defaults: include keys that have the default value of the schema.
    """
    own = {name: callback for name, callback in config.callbacks.items() if not is_our_logger(callback)}
    config = config.model_copy(update={"callbacks": own})
    tree = config.model_dump(by_alias=True, exclude_defaults=not defaults)
    # A constructor gets the given keys only; its own default may differ from the schema's.
    tree["optimizer"] = config.optimizer.plain()
    added = ADDED_LATER.get(config.model.target, {})
    tree["model"] = {key: value for key, value in tree["model"].items() if key not in added or value != added[key]}
    optional = {"root", "download"} - config.data.model_fields_set
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in optional}
    named = isinstance(config.data, Data) and config.data.target == "mnist_exp.data.idx_folder" and config.data.download
    for path in NOT_HASHED:
        if path != "data.root" or named:
            section, _, key = path.rpartition(".")
            (tree[section] if section else tree).pop(key, None)
    result: dict[str, Any] = _with_int_for_whole_numbers(tree)
    return result


def arm_settings(config: Config) -> dict[str, Any]:
    """The settings by dotted key that all runs of an arm share: those of ``hashed_config`` without the seed."""
    settings = {key: value for key, value in flatten(hashed_config(config)).items() if key != "seed"}
    if settings["trainer.evaluate_test"] == "last":
        settings["trainer.evaluate_test"] = "every"  # the result is the same
    return settings


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists are not flattened."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_int_for_whole_numbers(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _with_int_for_whole_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_int_for_whole_numbers(value) for value in node]
    # From 2**53 on a float cannot represent every integer.
    return int(node) if isinstance(node, float) and node.is_integer() and abs(node) < 2**53 else node


def changes_result(override: str) -> bool:
    """Whether an override, such as ``optimizer.lr=0.1``, sets something that is computed with; see ``NOT_HASHED``."""
    key = override.lstrip("+").partition("=")[0]
    return not any(key == ignored or key.startswith(f"{ignored}.") for ignored in NOT_HASHED)


def is_our_logger(callback: Component) -> bool:
    """Whether a callback is a logger of this package; loggers do not change what is computed."""
    return callback.target.startswith("mnist_exp.loggers.")


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits, equal for runs that compute the same.

    Keys with their default value are left out, so that the hash does not change when the schema gets a new key.
    """
    tree = hashed_config(config, defaults=False)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
