"""The comparison with other frameworks: every candidate learns, what is missing is said, the document follows the results."""

from __future__ import annotations

from pathlib import Path

import benchmark_document
import benchmark_peers
import pytest
import torch
from benchmark_peers import CANDIDATES
from documented_examples import write_idx
from torch.utils.flop_counter import FlopCounterMode

from mnist_exp.models import MLP, LeNet5

ROOT = Path(__file__).parents[2]
EACH = [(name, network) for name, peer in CANDIDATES.items() for network in peer.networks]
# LeNet-5 differs from the MLP in what a candidate does only where it is written in a framework of its own.
TRIED = [(name, network) for name, network in EACH if network == "mlp" or name.startswith("JAX, jitted")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_idx(folder / "MNIST" / "raw")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network"), TRIED)
def test_each_candidate_learns(name: str, network: str, digits: Path) -> None:
    if name in benchmark_peers.missing():
        pytest.skip(benchmark_peers.missing()[name])
    result = CANDIDATES[name].run(digits, network, 1)
    (epoch,) = result["epochs"]
    assert 0.05 < epoch["train_loss"] < 1.3
    assert epoch["test_accuracy"] > 0.8
    assert 0 < epoch["train_seconds"] < result["wall_seconds"]


def test_a_candidate_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_peers, "find_spec", lambda name: None if name == "sklearn" else object())
    absent = benchmark_peers.missing()
    assert absent == {"scikit-learn": "needs scikit-learn: pip install -e '.[bench]'"}
    assert benchmark_peers.table([], "mlp", absent)[2:] == [
        "| scikit-learn | 0 | needs scikit-learn: pip install -e '.[bench]' | | | | | |"
    ]
    assert len(benchmark_peers.table([], "lenet5", absent)) == 2


def test_a_program_that_fails_is_named_by_its_last_line() -> None:
    with pytest.raises(benchmark_peers.PeerFailed, match="ValueError: no such thing"):
        benchmark_peers.process(["-c", "raise ValueError('no such thing')"])


@pytest.mark.parametrize(("network", "model"), [("lenet5", LeNet5), ("mlp", MLP)])
def test_flops_are_those_that_pytorch_counts(network: str, model: type[torch.nn.Module]) -> None:
    images = torch.randn(4, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        model()(images).sum().backward()
    assert benchmark_document.flops(network, 4) == counter.get_total_flops()
    less = benchmark_document.flops(network, 4, at_maxima_only=True)
    assert (less < benchmark_document.flops(network, 4)) == (network == "lenet5")


def test_document_says_what_the_results_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    committed = benchmark_document.DOCUMENT.read_text(encoding="utf-8")
    document = tmp_path / "document.md"
    document.write_text(committed, encoding="utf-8")
    monkeypatch.setattr(benchmark_document, "DOCUMENT", document)
    for name in ("PEERS_FIGURE", "GROWTH_FIGURE"):
        assert f"figures/{getattr(benchmark_document, name).name}" in committed
        assert getattr(benchmark_document, name).exists()
        monkeypatch.setattr(benchmark_document, name, tmp_path / f"{name}.png")
    benchmark_document.write()
    assert document.read_text(encoding="utf-8") == committed
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("PEERS_FIGURE", "GROWTH_FIGURE"))
