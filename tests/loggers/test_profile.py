"""``trainer.profile``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from mnist_exp.runs import read_run


def test_a_profile_of_the_first_epoch_changes_no_result(mnist_train: Callable[..., int], small: list[str]) -> None:
    augmented = "regularization=augment"
    for name, override in (("plain", []), ("profiled", ["trainer.profile=true"])):
        assert mnist_train(*small, augmented, *override, f"hydra.run.dir={name}") == 0
    plain, profiled = read_run(Path("plain")), read_run(Path("profiled"))
    assert plain.record.config_hash == profiled.record.config_hash
    assert Path("plain/predictions.npz").read_bytes() == Path("profiled/predictions.npz").read_bytes()
    table = Path("profiled/profile.txt").read_text()
    assert table.startswith("epoch 1\n")
    trace = json.loads(gzip.decompress(Path("profiled/trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    for part in ("augmentation", "step", "evaluation", "checkpoint"):
        assert part in names
        assert f" {part} " in table
    assert not Path("plain/profile.txt").exists()
