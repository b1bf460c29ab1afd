"""Compose the jobs of a sweep once, store each as a run directory that waits, and launch those that are not complete.

Any Hydra launcher will do: it decides where and when a job runs. What it is given to run is a run directory, and what
became of the job is read there, not from what the launcher returns.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from mnist_exp.composition import resolve, with_choices_checked
from mnist_exp.config import check
from mnist_exp.explain import as_mistake
from mnist_exp.mistakes import UsageError, as_typed, report
from mnist_exp.runs import RunDirectory, RunDirectoryError
from mnist_exp.runs.directory import is_locked, read_config
from mnist_exp.runs.provenance import cores
from mnist_exp.signals import StopRequest
from mnist_exp.sweeps.directory import FAILED, SETTLED, Job, SweepDirectory, job_id
from mnist_exp.sweeps.job import StopAll, train_apart, train_here
from mnist_exp.sweeps.progress import Progress, count, print_table
from mnist_exp.sweeps.slurm import job_name, launch_on_slurm, train_on_slurm

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class StoredJobs(ConfigLoader):
    """Stands in for Hydra's loader in a launcher: a job is what was stored when the sweep began, whatever ``conf/`` says
    now; ``sweep_overrides`` is the name of its directory."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        (name,) = sweep_overrides
        config = master_config.copy()
        with flag_override(config, ["struct", "readonly"], False):
            config.hydra.sweep.subdir = name
            config.hydra.overrides.task = []
            config.directory = str(Path(config.hydra.sweep.dir) / name)
        return config

    def _unused(self, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("launchers compose nothing else")

    load_configuration = get_search_path = get_sources = list_groups = _unused
    get_group_options = compute_defaults_list = _unused


def launch(
    context: HydraContext,
    config: DictConfig,
    inner: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    records: Sequence[Mapping[str, Any]],
) -> Sequence[JobReturn]:
    """Run jobs that are not complete yet, and wait for them.

    Args:
        context: of Hydra, whose loader composes the jobs.
        config: of the sweep.
        inner: configuration of the launcher that runs the jobs.
        job_overrides: of each job.
        initial_job_idx: number of the first, as Hydra counts.
        records: what else the ``run.json`` of each job says.

    Returns:
        the validation accuracy of each job, in this order; None for a job that has none.

    Raises:
        SystemExit: with 2 for a mistake, before anything runs; with 128 plus the signal after an interruption.
    """
    setup_globals()
    path = Path(config.hydra.sweep.dir).absolute()
    fresh = not (path / "sweep.json").exists()
    files = _fingerprint(context)
    try:
        composed = [
            _compose(context, config, overrides, index)
            for index, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        with SweepDirectory(path, shlex.join(["mnist-train", *sys.argv[1:]]), sys.argv[1:]) as sweep:
            parallel, threads = _shares(inner)
            fixed = _fixed_keys(context, config)
            jobs = [
                _find_or_add(sweep, job, list(overrides), fixed, {**record, "threads": threads})
                for job, overrides, record in zip(composed, job_overrides, records, strict=True)
            ]
            wanted = list(dict.fromkeys(jobs))
            if config.sweep.resume:
                wanted = list(dict.fromkeys([*wanted, *sweep.jobs.values()]))
            with StopAll(sweep.stop_file) as stop, Progress(sweep, wanted, bar=inner._target_ != BASIC):
                _run(sweep, wanted, _launcher(inner, config, sweep), stop, parallel)
            stopped_by = sweep.stop_file.read_text() if sweep.stop_file.exists() else None
            if _fingerprint(context) != files:
                composed = [
                    _compose(context, config, overrides, index) for index, overrides in enumerate(job_overrides)
                ]
            _report_edits(sweep, jobs, composed)
    except (UsageError, RunDirectoryError) as error:
        if fresh and [item.name for item in path.glob("*")] == ["multirun.yaml"]:
            shutil.rmtree(path)  # Hydra made it before anybody looked
        report(error)
        sys.exit(2)
    _LAST[:] = [sweep]
    if stopped_by is not None:
        conclude(int(stopped_by or 0))
    return [_returned(job, sweep) for job in jobs]


# The sweep that ran last in this process, for the end of the program; a search launches several times.
_LAST: list[SweepDirectory] = []


def conclude(stopped_by: int = 0) -> None:
    """Print the table of all jobs, and leave with status 1 if any failed.

    Args:
        stopped_by: the signal that stopped the sweep; the exit status is then 128 more.
    """
    if not _LAST:
        return
    sweep = _LAST.pop()
    standings = {name: sweep.standing(job) for name, job in sweep.jobs.items()}
    print_table(sweep, standings)
    if stopped_by:
        sys.exit(128 + stopped_by)
    if any(standing.status in FAILED | {"interrupted"} for standing in standings.values()):
        sys.exit(1)


@dataclass(frozen=True)
class Composed:
    """The whole configuration of a job; ``task`` is what is not Hydra's of it, ``tree`` what it computes, resolved."""

    config: DictConfig
    task: DictConfig
    tree: dict[str, Any]


def _compose(context: HydraContext, config: DictConfig, overrides: Sequence[str], index: int) -> Composed:
    """The configuration of a job, checked.

    Raises:
        UsageError: it cannot run; the message says which job.
    """
    hydra = HydraConfig.instance()
    sweep = hydra.cfg
    folders = _folders(context)
    try:
        composed = context.config_loader.load_sweep_config(config, with_choices_checked(overrides, folders))
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = index
        hydra.set_config(composed)
        _refuse_another_sweep(config, composed)
        task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        tree = resolve(task)
        check(tree)
    except Exception as error:
        if (mistake := as_mistake(error, folders)) is None:
            raise
        fixed = _fixed_keys(context, config)
        varying = [override for override in overrides if override.partition("=")[0] not in fixed]
        which = f" (job {' '.join(varying)})" if varying else ""
        raise UsageError("\n".join(f"{line}{which}" for line in str(mistake).splitlines())) from error
    finally:
        hydra.cfg = sweep
    del tree["sweep"]
    return Composed(composed, task, tree)


def _refuse_another_sweep(config: DictConfig, composed: DictConfig) -> None:
    """A job is one run: what a choice says of sweeping, launching or naming the sweep would go unheard.

    Raises:
        UsageError: the job's configuration asks for another sweep than the one it is in.
    """
    ours, its = (OmegaConf.to_container(node, resolve=False) for node in (config, composed))
    assert isinstance(ours, dict)
    assert isinstance(its, dict)
    for key, our, its_own in (
        ("hydra.sweeper", ours["hydra"]["sweeper"], its["hydra"]["sweeper"]),
        ("hydra.launcher", ours["hydra"]["launcher"]["inner"], its["hydra"]["launcher"]),
        ("hydra.sweep", ours["hydra"]["sweep"], its["hydra"]["sweep"]),
        ("sweep", ours["sweep"], its["sweep"]),
    ):
        names = [name for name in {**our, **its_own} if name != "_target_"]  # which is ours here and Hydra's there
        if differing := next((name for name in names if our.get(name) != its_own.get(name)), None):
            raise UsageError(
                f"{key}.{differing} differs from job to job: a sweep of sweeps is not possible; give a command for each"
            )


def _fixed_keys(context: HydraContext, config: DictConfig) -> set[str]:
    """Keys that the command line gives one value, the same for all jobs."""
    parsed = OverridesParser.create(context.config_loader).parse_overrides(list(config.hydra.overrides.task))
    varies = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    return {key for key, several in varies.items() if not several}


def _find_or_add(
    sweep: SweepDirectory, composed: Composed, arguments: list[str], fixed: set[str], more: Mapping[str, Any]
) -> Job:
    """The job that computes this, or that the same overrides made when the sweep began; else a new one that waits."""
    tree = composed.tree
    arguments = [argument for argument in arguments if not argument.startswith("sweep.")]
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in fixed]
    identity = job_id(tree, overrides)
    job = sweep.find(identity) or sweep.find_composed_from(arguments)
    if job is not None and (sweep.path / job.directory / "run.json").exists():
        return job
    job = job or sweep.add(identity, overrides, arguments, tree["name"])
    path = sweep.path / job.directory
    record = {
        "name": tree["name"],
        "seed": tree["seed"],
        "config_hash": identity.partition("-")[0],
        "command": sweep.command,
        "sweep": sweep.path.name,
        **more,
    }
    if record["threads"] is None or tree["trainer"]["threads"] is not None:
        del record["threads"]  # else its share of the cores, now and when it is resumed
    with RunDirectory.create(path, tree=tree, overrides=arguments, record=record, status="waiting"):
        hydra = path / ".hydra"
        hydra.mkdir(exist_ok=True)
        OmegaConf.save(composed.task, hydra / "config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(composed.config, "hydra"), hydra / "hydra.yaml")
        OmegaConf.save(composed.config.hydra.overrides.task, hydra / "overrides.yaml")
    return job


def _shares(inner: DictConfig) -> tuple[int | None, int | None]:
    """How many jobs run at once on this machine, where we must see to it, and how many threads each has.

    Two pools of threads on the same cores are several times slower than one, so nobody but the only job of a machine
    takes what it finds.
    """
    target = str(inner._target_)
    if "joblib" in target:
        jobs = int(inner.n_jobs)
        jobs = jobs if jobs > 0 else max(1, cores() + 1 + jobs)
        return None, max(1, cores() // jobs)
    if "submitit" in target:
        threads = int(inner.get("cpus_per_task") or inner.get("cpus_per_gpu") or 1)
        # submitit would start all local jobs at once.
        return (max(1, cores() // threads) if target.endswith("LocalLauncher") else None), threads
    if "ray" in target:
        return None, max(1, int(OmegaConf.select(inner, "ray.remote.num_cpus") or 1))
    return None, None


def _launcher(inner: DictConfig, config: DictConfig, sweep: SweepDirectory) -> Callable[[Sequence[Job]], None]:
    """The chosen launcher, which gets directories to train in."""
    on_slurm = str(inner._target_).endswith(".SlurmLauncher")
    job = OmegaConf.masked_copy(config, "hydra")
    OmegaConf.set_readonly(job.hydra, None)
    with flag_override(job, ["struct", "readonly"], False):
        job.directory = ""
        job.stop_file = str(sweep.stop_file)
        job.fail_fast = bool(config.sweep.fail_fast)
        job.hydra.launcher = inner
        job.hydra.callbacks = {}
        job.hydra.output_subdir = None  # .hydra/ is there already
        job.hydra.sweep.dir = str(sweep.path)
        if on_slurm:
            job.hydra.launcher.name = job_name(sweep.path)
        elif "ray" in inner:
            ray = job.hydra.launcher.ray
            # By default Ray runs a job again whose worker was killed, prints what is in output.log already, and without an
            # address joins a cluster that happens to run; which refuses the plugin's default size.
            ray.remote = {"max_retries": 0, **ray.remote}
            own = {"include_dashboard": False, **ray.init, "address": "local"}
            ray.init = {
                "log_to_driver": False,
                **(own if ray.init.get("address") is None else {"object_store_memory": None, **ray.init}),
            }
    task = train_here if inner._target_ == BASIC else train_on_slurm if on_slurm else train_apart
    context = HydraContext(config_loader=StoredJobs(), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=job)

    def launch_all(jobs: Sequence[Job]) -> None:
        launch = partial(launcher.launch, [[job.directory] for job in jobs], initial_job_idx=0)
        if on_slurm:
            launch_on_slurm(launch, job_name(sweep.path), sweep.stop_file)
        else:
            launch()

    return launch_all


def _run(
    sweep: SweepDirectory,
    wanted: Sequence[Job],
    launch_all: Callable[[Sequence[Job]], None],
    stop: StopRequest,
    parallel: int | None,
) -> None:
    """Launch jobs until each had its turn.

    A launcher may lose jobs it was given, because a worker died or because it stops listening at the first error; those
    that did not begin are given to it again, as long as that gets some of them going. A pool of processes (joblib's) that
    loses one kills the others, too: each job that ran then is given another chance, alone.
    """
    left = [job for job in wanted if sweep.standing(job).status not in SETTLED]
    tried: set[Job] = set()
    suspects: list[Job] = []
    while (left or suspects) and not stop():
        alone = suspects[:1]
        batch = alone or left[: parallel or len(left)]
        failure: Exception | None = None
        try:
            launch_all(batch)
        except Exception as error:
            failure = error
        while any(is_locked(sweep.path / job.directory) for job in batch):
            time.sleep(0.5)
        if sweep.stop_file.exists():
            return
        standings = {job: sweep.standing(job).status for job in batch}
        begun = [job for job in batch if standings[job] != "waiting"]
        if alone:
            del suspects[0]
        elif isinstance(failure, BrokenProcessPool):
            suspects = [job for job in begun if standings[job] == "killed"]
        if not begun and failure is not None and tried.issuperset(batch):
            message = " ".join(str(failure).split())
            raise UsageError(f"the launcher started no job: {type(failure).__name__}: {message}") from failure
        tried.update(batch)
        left = [job for job in left if job not in begun]


def _returned(job: Job, sweep: SweepDirectory) -> JobReturn:
    result = JobReturn(overrides=list(job.arguments), status=JobStatus.COMPLETED)
    result.working_dir = str(sweep.path / job.directory)
    result.return_value = sweep.standing(job).val_accuracy
    return result


def _folders(context: HydraContext) -> list[Path]:
    """Where configuration files lie."""
    return [Path(source.path) for source in context.config_loader.get_sources() if source.scheme() == "file"]


def _fingerprint(context: HydraContext) -> dict[Path, int]:
    """When each configuration file was last written."""
    return {file: file.stat().st_mtime_ns for folder in _folders(context) for file in folder.rglob("*.yaml")}


def _report_edits(sweep: SweepDirectory, jobs: Sequence[Job], composed: Sequence[Composed]) -> None:
    """Say where jobs are not what ``conf/`` makes of their overrides now."""
    edits: dict[tuple[str, ...], int] = {}
    for job, now in zip(jobs, composed, strict=True):
        if job_id(now.tree, job.overrides) != job.id:
            lines = tuple(differences(read_config(sweep.path / job.directory), now.tree))
            edits[lines] = edits.get(lines, 0) + 1
    for lines, number in edits.items():
        report(
            UsageError(
                f"conf/ has changed since {count(number, 'job')} of this sweep {'was' if number == 1 else 'were'} "
                f"composed: {'; '.join(lines)}; what was composed then is what runs, for the rest choose another "
                "hydra.sweep.dir"
            )
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every value that is not the same in two trees."""
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {as_typed(old)} -> {as_typed(new)}")
    return lines
