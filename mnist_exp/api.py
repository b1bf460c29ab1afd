"""Training and reading runs from Python. Users import these functions from ``mnist_exp``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.errors import UsageError, as_override, as_typed
from mnist_exp.runs import Run, read_run

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn


def train(
    *overrides: str,
    directory: str | Path | None = None,
    config_dir: str | Path | None = None,
    trust: Collection[str] = (),
) -> Run:
    """Train one network: the same run directory, and the same bits, as ``mnist-train`` with these overrides.

    PyTorch's number of threads and its random numbers are set for the whole process, as the configuration says. Runs of one
    process go one after the other, not in threads.

    Args:
        overrides: as on the command line, without a shell's quotes: ``"model=mlp"``, ``"model.hidden=[64,64]"``,
            ``"resume=DIR"``.
        directory: of the run; None: a new one below ``outputs/``.
        config_dir: a folder with configuration files of your own, such as ``model/mynet.yaml``.
        trust: packages whose code may run where a run directory names it: with ``resume``, ``init_from`` or teachers.

    Returns:
        the run, as ``load_run`` reads it.

    Raises:
        UsageError: a mistake in the settings; nothing is written.
        RunFailed: the run failed or diverged; ``train.log`` in its directory says how.
        KeyboardInterrupt: the run was stopped (a ``RunInterrupted``, whose message says how to continue).
    """
    from mnist_exp.commandline import folders_of, run_hydra, without_flags
    from mnist_exp.explain import as_usage_error
    from mnist_exp.task import run_path, start_run

    settings = _settings(overrides, directory, trust)
    options = without_flags(settings)
    flags = [] if config_dir is None else ["--config-dir", str(config_dir)]
    options.config_dir = flags[-1] if flags else None
    paths: list[Path] = []

    def task(composed: DictConfig) -> None:
        paths.append(run_path())
        start_run(composed, [*settings, *flags])

    try:
        run_hydra(task, options)
    except Exception as error:
        mistake = as_usage_error(error, folders_of(options))
        if mistake is None or mistake is error:
            raise
        raise mistake from error
    return read_run(paths[0])


def _settings(overrides: Sequence[str], directory: str | Path | None, trust: Collection[str]) -> list[str]:
    """The overrides of the ``mnist-train`` that does the same.

    Raises:
        UsageError: an option of the command, or a sweep.
    """
    from mnist_exp.commandline import with_paths_quoted

    arguments = with_paths_quoted(overrides)
    for word in arguments:
        if word.startswith("-") or word.partition("=")[0] == "hydra.mode":
            raise UsageError(
                f"{word}: train() takes settings of one run only, KEY=VALUE; sweeps are for mnist-train -m"
            )
    if directory is not None:
        arguments.append(as_override("hydra.run.dir", Path(directory)))
    if trust:
        arguments.append(as_override("trust", _packages(trust)))
    return arguments


def load_run(path: str | Path) -> Run:
    """What one run directory says: status, record, configuration, metrics.

    Raises:
        UsageError: it is missing, damaged, or not one of ours.
    """
    return read_run(path)


def load_runs(*paths: str | Path) -> list[dict[str, Any]]:
    """One flat record a run, which ``pandas.DataFrame(records)`` takes as it is.

    Keys: ``directory``, ``status``, ``name``, ``seed``, every setting by its dotted key (``optimizer.lr``; lists as typed:
    ``"[64,64]"``), the metrics of the last epoch (``test_accuracy``, a fraction; ``test_loss``, nats), ``parameters``,
    ``macs``, ``threads``, ``device``, ``backend``, ``config_hash``, ``error``, and ``seconds`` (in all). A run that has no
    such value yet has None there.

    Args:
        paths: run directories, folders of them (a sweep, ``outputs``), or patterns (``"outputs/**/mlp-*"``).

    Raises:
        UsageError: a path leads nowhere, or a run directory is damaged.
    """
    from mnist_exp.reports.collect import paths_of

    rows = [_row(read_run(path)) for path in paths_of([str(path) for path in paths])]
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _row(run: Run) -> dict[str, Any]:
    from mnist_exp.reports.settings import flatten

    record = run.record
    settings = {
        key: as_typed(value) if isinstance(value, list | Mapping) else value
        for key, value in flatten(run.config.plain()).items()
    }
    return {
        "directory": str(run.path),
        "status": str(run.status),
        "name": record.name,
        "seed": record.seed,
        **settings,
        **(record.final or (run.metrics[-1] if run.metrics else {})),
        **{
            key: getattr(record, key)
            for key in ("parameters", "macs", "threads", "device", "backend", "config_hash", "error")
        },
        "seconds": record.seconds.get("total"),
    }


def load_model(path: str | Path, trust: Collection[str] = ()) -> nn.Module:
    """The trained network of a run, on the CPU and in evaluation mode: (N, 1, S, S) float32, normalised, to logits (N, C).

    PyTorch computes it, so that hooks, ``torch.save`` and ``torch.export`` work; C kernels that trained it round differently.
    PyTorch's random numbers are left alone.

    Args:
        path: run directory.
        trust: packages whose code may run besides ours and PyTorch's: ``["mynet"]`` for a network of your own.

    Raises:
        UsageError: there is no trained network, or it needs code that is not trusted.
    """
    import torch

    from mnist_exp.reader import trained_model

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
    with torch.random.fork_rng(devices):
        model, _ = trained_model(read_run(path), torch.device("cpu"), _packages(trust), kernels=False)
    return model.eval()


def _packages(trust: Collection[str]) -> list[str]:
    """One name may be given as it is."""
    return [trust] if isinstance(trust, str) else list(trust)
