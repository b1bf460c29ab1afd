"""Audit reports: train what their claims files describe, and say which claims are reproduced.

    mnist-audit examples/claims/made_up.yaml --seeds 3
    mnist-audit claims --seeds 0

Complete runs are kept: the same command finishes an interrupted audit, and a larger --seeds adds runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir

from mnist_exp.cli.arguments import ArgumentParser
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.cli.train import run_words
from mnist_exp.compose import CONF, resolve
from mnist_exp.config import Config, check
from mnist_exp.errors import RunFailed, UsageError, as_override, printable
from mnist_exp.explain import as_usage_error
from mnist_exp.hashing import changes_result
from mnist_exp.reports.audit.claims import Model, Report, find_claims
from mnist_exp.reports.audit.findings import Audited, check_epochs
from mnist_exp.reports.audit.results import Measured
from mnist_exp.sweeps.resuming import is_own
from mnist_exp.torch_import import import_torch

if TYPE_CHECKING:
    from mnist_exp.reports.audit.counting import Count
    from mnist_exp.reports.audit.document import Audit

OUTPUT = Path("outputs/audit")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-audit``: exit status 2 for a user's mistake, 1 if a run failed, 130 or 143 when stopped."""
    options = _read(arguments)
    with exit_status("mnist-audit"):
        results = options.output / "results.csv"
        flags = {"--output": options.output, "--config-dir": options.config_dir}
        again = [word for flag, value in flags.items() if value not in {None, OUTPUT} for word in (flag, str(value))]
        audit, failed = audit_reports(options.claims, options.seeds, results, options.overrides, options.config_dir)
        from mnist_exp.reports.audit.document import write

        audit = replace(audit, options=[*options.overrides, *again])
        try:
            files = write(audit, options.output)
        except OSError as error:
            raise UsageError(f"--output {options.output} cannot be written: {error.strerror or error}") from error
        with printing():
            _print(audit, [*files, results])
        if failed:
            raise RunFailed(f"not all runs completed: {', '.join(failed)}; the same command trains them again")


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="mnist-audit",
        example="mnist-audit FILE",
        description="Train what claims files describe, and say which claims of the reports are reproduced.",
    )
    parser.add_argument("claims", nargs="+", metavar="FILE", help="claims files, or folders of them (docs/audits.md)")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="how and where runs are trained, as for mnist-train -m: a launcher, data.root",
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="runs of each network, with seeds from 0; default: 10; 0: train nothing"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        help="folder; default: outputs/audit. Runs in its results.csv are not trained again",
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="your own configuration files, as for mnist-train"
    )
    options = parser.parse(arguments)
    given = [*options.claims, *options.overrides]
    options.overrides = [word for word in given if "=" in word and not Path(word).exists()]
    options.claims = [Path(word) for word in given if word not in options.overrides]
    if not options.claims:
        parser.error("the following arguments are required: FILE")
    if options.seeds < 0:
        parser.error(f"--seeds {options.seeds} should be 0 or more")
    return options


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
        raise UsageError(f"{changing[0]} changes what is computed; it belongs into run of the claims file")
    networks = prepare(find_claims(claims), overrides, config_dir)
    measured = Measured()
    measured.read(results)
    failed: list[str] = []
    problems = {network.recipe: measured.add_runs(network.folder, network.recipe) for network in networks}
    for network in networks:
        missing = [seed for seed in range(seeds) if not measured.has(network.with_seed(seed))]
        if missing:
            if not _train(network, missing, overrides, config_dir):
                failed.append(network.recipe)
            problems[network.recipe] = measured.add_runs(network.folder, network.recipe)
        measured.write(results)
    from mnist_exp.reports.audit.document import Audit

    known = sorted({*range(seeds), *measured.seeds})
    audited = [
        Audited(network.report, network.name, network.model, network.config, network.count,
                measured.of(network.with_seed(seed) for seed in known), problems[network.recipe])
        for network in networks
    ]  # fmt: skip
    return Audit(audited), failed


def prepare(reports: Sequence[Report], overrides: Sequence[str], config_dir: Path | None) -> list[Prepared]:
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
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    swept = [f"seed={','.join(map(str, seeds))}", as_override("hydra.sweep.dir", network.folder)]
    try:
        run_words(["-m", *flags, *network.model.run, *swept, *logger, *overrides])
    except RunFailed:
        return False
    return True


def _print(audit: Audit, files: Sequence[Path]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mnist_exp.reports.audit import words
    from mnist_exp.terminal import Terminal

    table = Table(title="Claims: mean ± standard deviation of single runs", box=None, pad_edge=False)
    for title in ("claim", "verdict", "claimed", "measured", "n"):
        table.add_column(title, overflow="fold")
    for audited in audit.networks:
        table.add_row(f"[bold]{escape(printable(audited.label))}[/bold]")
        for line in words.lines(audited):
            claim, *cells = (escape(printable(text)) for text in line.cells)
            table.add_row(f" {claim}", *cells[:3], cells[4])
    Terminal(soft_wrap=False).print(table)
    for text in _sentences(audit):
        print(printable(text))
    print("written:", ", ".join(map(str, files)))


def _sentences(audit: Audit) -> Iterator[str]:
    from mnist_exp.reports.audit import words

    for audited in audit.networks:
        for line in words.lines(audited):
            if line.sentence:
                yield f"{audited.label}, {line.claim}: {line.sentence}"
    yield from (f"More seeds: {command}" for command in audit.more_seeds)
    yield from (f"Not counted: {problem}" for problem in audit.problems)
    yield f"{audit.headline}."


if __name__ == "__main__":
    main()
