"""The configurations of jobs are exactly those that Hydra composes, but fewer files are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_exp.compose import CONF, choices, groups
from mnist_exp.sweeps.composing import JobComposer


class Loads:
    """Hydra's loader, which records what it loads."""

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.loader, self.config = loader, config
        self.asked: list[list[str]] = []

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        self.asked.append(overrides)
        return self.loader.load_sweep_config(config, overrides)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def composer(self) -> JobComposer:
        return JobComposer(self, self.config, groups())  # type: ignore[arg-type]  # it has what is used of a loader


@pytest.fixture
def loads() -> Iterator[Loads]:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield Loads(hydra.config_loader, hydra.compose_config("train", ["name=test"], run_mode=RunMode.MULTIRUN))


def everything(config: DictConfig) -> tuple[Any, ...]:
    """The values of a configuration, and its flags."""
    return (
        OmegaConf.to_yaml(config, resolve=False),
        OmegaConf.to_container(config, structured_config_mode="instantiate"),
        [(OmegaConf.is_struct(node), OmegaConf.is_readonly(node)) for node in (config, config.hydra, config.trainer)],
        str(config.run_token) if "run_token" in config else None,
    )


@pytest.mark.parametrize("group", ["experiment", "sweep"])
def test_presets(group: str, loads: Loads) -> None:
    composer = loads.composer()
    for choice in choices(group):
        jobs = [[f"{group}={choice}", f"seed={seed}", "trainer.batch_size=8", "optimizer.lr=0.5"] for seed in (1, 2)]
        made = [composer.compose(job) for job in jobs]
        assert everything(made[1]) == everything(loads.loader.load_sweep_config(loads.config, jobs[1]))
        assert made[0].seed == 1
    assert len(loads.asked) == len(choices(group)), "each was read once"


@pytest.mark.parametrize(
    ("overrides", "reads"),
    [
        (["model=mlp", "model.hidden=[8,8]", "seed=1", "seed=2"], 1),
        (["seed=1", "model=mlp", "trainer.epochs=3", "regularization=dropout"], 1),
        (["optimizer=adam", "optimizer.betas=[0.8,0.9]", "++optimizer.amsgrad=true", "optimizer.lr=1"], 1),
        (["+optimizer.x={a: 1}", "optimizer.x.a=2"], 2),
        (["optimizer={nesterov: true}", "optimizer.lr=0.5"], 2),
        (["trainer={epochs: 3}", "trainer.epochs=4"], 2),
        (["~callbacks", "seed=1"], 1),
        (["hydra.job.name=mine", "seed=1", "hydra/job_logging=none"], 1),
        (["data.root=${oc.env:HOME}", "name='a b'", "regularization.ema=null"], 1),
        (["regularization.distillation={weight: 0.5}", "regularization.distillation.weight=0.25"], 1),
    ],
)
def test_overrides(overrides: list[str], reads: int, loads: Loads) -> None:
    composer = loads.composer()
    for _ in range(2):
        assert everything(composer.compose(overrides)) == everything(
            loads.loader.load_sweep_config(loads.config, overrides)
        )
    assert len(loads.asked) == reads


@pytest.mark.parametrize("override", ["trainer.epoch=1", "seed.x=1", "model.hidden={a: 1}", "model=absent"])
def test_mistakes_have_hydras_messages(override: str, loads: Loads) -> None:
    said = []
    for compose in (loads.composer().compose, lambda job: loads.loader.load_sweep_config(loads.config, job)):
        with pytest.raises(HydraException) as raised:
            compose([override, "seed=1"])
        said.append((type(raised.value), str(raised.value), str(raised.value.__cause__)))
    assert said[0] == said[1]


def test_jobs_share_nothing(loads: Loads) -> None:
    composer = loads.composer()
    first = composer.compose(["model=mlp", "seed=1"])
    first.data.val_size = 99
    first.hydra.job.chdir = True
    first.hydra.job.num = 7
    second = composer.compose(["model=mlp", "seed=2"])
    assert (second.data.val_size, second.seed) == (0, 2)
    assert not second.hydra.job.chdir
    assert OmegaConf.is_missing(second.hydra.job, "num")
