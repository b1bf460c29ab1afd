"""How to reproduce the runs of a report: commands, versions, machines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from mnist_exp.reports.collect import Arm, Comparison, overrides_of
from mnist_exp.runs import Run
from mnist_exp.runs.record import Hardware


@dataclass(frozen=True)
class Reproduction:
    """How to reproduce the runs of one arm."""

    label: str
    seeds: tuple[int, ...]
    commands: tuple[str, ...]  # one for each run, without repetitions
    commit: str
    versions: str
    hardware: str
    directories: tuple[str, ...]


def reproductions(comparison: Comparison) -> list[Reproduction]:
    """The reproduction of each arm."""
    return [_reproduction(arm) for arm in comparison.arms]


def _reproduction(arm: Arm) -> Reproduction:
    runs = list(arm.runs.values()) or arm.others

    def all_of(show: Callable[[Run], str]) -> str:
        return "; ".join(dict.fromkeys(show(run) for run in runs))

    def commit(run: Run) -> str:
        git = run.record.git
        return f"{git.commit}{' with uncommitted changes' if git.dirty else ''}" if git else "unknown commit"

    def versions(run: Run) -> str:
        return (
            ", ".join(f"{name} {version}" for name, version in run.record.versions.items() if version)
            or "unknown versions"
        )

    def hardware(run: Run) -> str:
        known = run.record.hardware or Hardware()
        threads = f"{run.record.threads or '?'} threads of {known.cores or '?'} cores"
        backend = ", native kernels" if run.record.backend == "native" else ""
        return f"{known.cpu or 'unknown processor'}, {run.record.device or 'unknown device'}, {threads}{backend}"

    return Reproduction(
        label=arm.label,
        seeds=tuple(arm.runs) or tuple(sorted(run.config.seed for run in arm.others)),
        commands=tuple(dict.fromkeys(run_command(run) for run in runs)),
        commit=all_of(commit),
        versions=all_of(versions),
        hardware=all_of(hardware),
        directories=tuple(str(run.path) for run in [*arm.runs.values(), *arm.others]),
    )


def run_command(run: Run) -> str:
    """The command that trains this run again alone, even if a sweep started it."""
    words = words_of(run)
    if any(word.startswith("sweep=") for word in words):  # a preset, which would start a sweep or a search
        words.append("hydra.mode=RUN")
    return shlex.join(["mnist-train", *words]) if words else str(run.record.command or "unknown command")


def words_of(run: Run) -> list[str]:
    """The folders with a user's own configuration files, and the overrides; none if the overrides are not known."""
    try:
        typed = shlex.split(run.record.command or "")
    except ValueError:  # a quote that is not closed
        typed = []
    folders = [typed[place : place + 2] for place, word in enumerate(typed) if word in {"--config-dir", "-cd"}]
    overrides = overrides_of(run)
    return [*(word for folder in folders for word in folder), *overrides] if overrides else []
