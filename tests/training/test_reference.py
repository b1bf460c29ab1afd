"""The bits of a training do not change on a platform: its weights are those in tests/reference_weights.json."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from reference_weights import BACKENDS, CHOOSING, COMMAND, NETWORKS, digest, known, platform_of

from mnist_exp.native.build import NativeUnavailable


@pytest.mark.usefixtures("shipped_kernels")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_are_those_of_this_platform(backend: str, tmp_path: Path) -> None:
    if chosen := [name for name in CHOOSING if name in os.environ]:
        pytest.skip(f"{chosen[0]} is set, which changes the instructions that are used")
    try:
        own = platform_of(backend)
    except NativeUnavailable as error:
        pytest.skip(str(error))
    expected = next((entry["digests"] for entry in known() if entry["platform"] == own), None)
    if expected is None:
        pytest.skip(f"no reference for this platform, {own}; add it: {COMMAND}")
    found = {network: digest(network, backend, tmp_path / network) for network in NETWORKS}
    assert found == expected, f"an operation, its order or a random number has changed; if on purpose: {COMMAND}"


def test_a_changed_random_number_or_operation_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reference_weights

    before = digest("mlp", "torch", tmp_path / "1")
    assert digest("mlp", "torch", tmp_path / "2") == before
    monkeypatch.setattr(reference_weights, "SMALL", (*reference_weights.SMALL[:-1], "seed=2"))
    assert digest("mlp", "torch", tmp_path / "3") != before


def test_each_platform_has_one_reference() -> None:
    platforms = [tuple(sorted(entry["platform"].items())) for entry in known()]
    assert len(platforms) == len(set(platforms))
    assert all(entry["digests"].keys() == NETWORKS.keys() for entry in known())
