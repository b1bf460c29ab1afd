"""Which configurations compute the same thing: the part of them that decides it, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mnist_exp.config import Component, Config, Data

# What a run is called, where it runs, who hears of it and in which folder its data lie: none of it changes what is computed.
NOT_HASHED = (
    *("name", "resume", "quiet", "show_layers", "logger", "sweep", "trust"),
    *("trainer.device", "trainer.threads", "trainer.backend", "trainer.profile", "data.root"),
)
# Runs that do not say have version 1: there 10 and 10.0 differ, and so does an absent key from one that has its default.
HASH_VERSION = 2


def hashed_config(config: Config, *, defaults: bool = True) -> dict[str, Any]:
    """The part of a configuration that decides what is computed: all but ``NOT_HASHED`` and our loggers.

    The folder of the data does count where nothing else says which data they are. Numbers of equal value are equal.

    Args:
        defaults: with the keys that have their default in the schema.
    """
    own = {name: callback for name, callback in config.callbacks.items() if not is_our_logger(callback)}
    config = config.model_copy(update={"callbacks": own})
    what = config.model_dump(by_alias=True, exclude_defaults=not defaults)
    # A constructor gets only what is given; its own default may be another.
    what["optimizer"] = config.optimizer.plain()
    optional = {"root", "download"} - config.data.model_fields_set
    what["data"] = {key: value for key, value in what["data"].items() if key not in optional}
    named = isinstance(config.data, Data) and config.data.target == "mnist_exp.data.idx_folder" and config.data.download
    for path in NOT_HASHED:
        if path != "data.root" or named:
            section, _, key = path.rpartition(".")
            (what[section] if section else what).pop(key, None)
    equal: dict[str, Any] = _with_equal_numbers(what)
    return equal


def _with_equal_numbers(node: Any) -> Any:
    """Plain data in which a whole number is an int, however it was written."""
    if isinstance(node, dict):
        return {key: _with_equal_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_equal_numbers(value) for value in node]
    # From 2**53 on every float is whole, and few integers have one.
    return int(node) if isinstance(node, float) and node.is_integer() and abs(node) < 2**53 else node


def is_our_logger(callback: Component) -> bool:
    """Whether a callback is a logger of this package, which changes nothing that is computed."""
    return callback.target.startswith("mnist_exp.loggers.")


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits that are equal exactly for runs that compute the same thing.

    A key with its default counts as absent, so that the hash stays what it is when the schema gets a new key.
    """
    what = hashed_config(config, defaults=False)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
