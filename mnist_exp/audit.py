"""Audit reports: train the recipes of their claims files as sweeps, and judge the claims."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir

from mnist_exp.commandline import run_hydra, without_flags
from mnist_exp.compose import CONF, resolve
from mnist_exp.config import Config, check
from mnist_exp.errors import RunFailed, UsageError, as_override, printable
from mnist_exp.explain import as_usage_error
from mnist_exp.hashing import changes_result
from mnist_exp.reports.audit.claims import Model, Report, find_claims
from mnist_exp.reports.audit.document import Audit
from mnist_exp.reports.audit.findings import Audited, check_epochs
from mnist_exp.reports.audit.results import Measured
from mnist_exp.sweeps.resuming import is_own
from mnist_exp.task import start_run
from mnist_exp.torch_import import import_torch

if TYPE_CHECKING:
    from mnist_exp.reports.audit.counting import Count

RUNS = Path("outputs/sweeps/audit")  # a sweep for each network: RUNS/CLAIMS FILE/NETWORK


@dataclass(frozen=True)
class Prepared:
    """A network of a report, its checked recipe with seed 0, and its counted parameters."""

    report: Report
    name: str
    model: Model
    config: Config
    count: Count

    @property
    def folder(self) -> Path:
        return RUNS / self.report.name / self.name

    @property
    def recipe(self) -> str:
        return f"{self.report.name}/{self.name}"

    def with_seed(self, seed: int) -> Config:
        return self.config.model_copy(update={"seed": seed})


def audit_reports(
    claims: Sequence[Path],
    seeds: int,
    results: Path,
    overrides: Sequence[str] = (),
    config_dir: Path | None = None,
) -> tuple[Audit, list[str]]:
    """Train what is missing, and judge the claims.

    Args:
        claims: claims files, or folders of them.
        seeds: number of runs of each network, with seeds from 0.
        results: the CSV file with the measured runs, which is read and written.
        overrides: of all runs; they may not change what is computed.
        config_dir: a folder with configuration files of the user.

    Returns:
        the audit, and the networks with runs that failed.

    Raises:
        UsageError: a mistake in a claims file or a setting, before anything is trained.
        RunInterrupted: a signal stopped a sweep.
    """
    if changing := [word for word in overrides if changes_result(word) and not word.lstrip("+~").startswith("hydra")]:
        advice = "type --seeds N" if changing[0].startswith("seed=") else "it belongs into run of the claims file"
        raise UsageError(f"{changing[0]} changes what is computed; {advice}")
    networks = _prepare(find_claims(claims), overrides, config_dir)
    measured = Measured()
    measured.read(results)
    failed: list[str] = []
    problems = {network.recipe: measured.add_runs(network.folder, network.recipe) for network in networks}
    measured.write(results)  # refused before anything is trained
    for network in networks:
        missing = [seed for seed in range(seeds) if not measured.has(network.with_seed(seed))]
        if missing:
            if not _train(network, missing, overrides, config_dir):
                failed.append(network.recipe)
            problems[network.recipe] = measured.add_runs(network.folder, network.recipe)
            measured.write(results)
    known = sorted({*range(seeds), *measured.seeds})
    audited = [
        Audited(network.report, network.name, network.model, network.config, network.count,
                measured.of(network.with_seed(seed) for seed in known), problems[network.recipe])
        for network in networks
    ]  # fmt: skip
    return Audit(audited), failed


def _prepare(reports: Sequence[Report], overrides: Sequence[str], config_dir: Path | None) -> list[Prepared]:
    """Compose and check all recipes, and count the parameters of their networks.

    Raises:
        UsageError: a recipe is not possible, or names code, which a claims file must not do; a line for each.
    """
    mistakes: list[str] = []
    checked: list[tuple[Report, str, Model, Config]] = []
    for report in reports:
        for name, model in report.claims.models.items():
            try:
                config = _composed(model.run, overrides, config_dir)
                check_epochs(model, config)
                checked.append((report, name, model, config))
            except Exception as error:
                if (mistake := as_usage_error(error, _folders(config_dir))) is None:
                    raise
                mistakes += [f"{report.path}: models.{name}: {line}" for line in str(mistake).splitlines()]
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    import_torch()
    from mnist_exp.reports.audit.counting import count

    return [
        Prepared(report, name, model, config, count(config, model.parameters))
        for report, name, model, config in checked
    ]


def _composed(run: Sequence[str], overrides: Sequence[str], config_dir: Path | None) -> Config:
    for word in run:
        if not is_own(word):
            raise UsageError(
                f"run holds {printable(word)}, and a claims file may not name code or Hydra's settings; put it into a file of your "
                "own, type --config-dir FOLDER, and name that file in run"
            )
    own = [word for word in overrides if not word.lstrip("+~").startswith("hydra")]
    search = [f"hydra.searchpath=[file://{config_dir.absolute()}]"] if config_dir else []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = resolve(compose("train", overrides=["name=audit", "logger=none", *search, *run, *own]))
    return check(tree).with_absolute_paths(Path.cwd())


def _folders(config_dir: Path | None) -> list[Path]:
    return [*([config_dir.absolute()] if config_dir else []), CONF]


def _train(network: Prepared, seeds: Sequence[int], overrides: Sequence[str], config_dir: Path | None) -> bool:
    """Train these seeds as one sweep, which can be interrupted and finished; returns whether all runs completed."""
    logger = [] if any(word.lstrip("+~").startswith("logger") for word in overrides) else ["logger=none"]
    swept = [f"seed={','.join(map(str, seeds))}", as_override("hydra.sweep.dir", network.folder)]
    words = [*network.model.run, *swept, *logger, *overrides]
    options = without_flags(words)
    options.multirun, options.config_dir = True, str(config_dir) if config_dir else None
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    given = list(sys.argv)
    sys.argv[:] = ["mnist-train", "-m", *flags, *words]  # a sweep stores them as its command
    try:
        run_hydra(lambda composed: start_run(composed, sys.argv[1:]), options)
    except RunFailed:
        return False
    finally:
        sys.argv[:] = given
    return True
