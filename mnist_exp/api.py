"""Train and read runs from Python. Users import these functions from ``mnist_exp``."""

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
    """Train one network. Run directory and weights are the same as of ``mnist-train`` with these overrides, bit for bit.

    Sets PyTorch's number of threads and its random seed for the whole process. Do not call it in several threads at once.

    Args:
        overrides: as on the command line, without a shell's quotes: ``"model=mlp"``, ``"model.hidden=[64,64]"``,
            ``"resume=DIR"``.
        directory: of the run; None: a new one in ``outputs/``.
        config_dir: a folder with your own configuration files, such as ``model/mynet.yaml``.
        trust: packages whose code may run if a run directory names it: with ``resume``, ``init_from`` or teachers.

    Returns:
        the run, as ``load_run`` returns it.

    Raises:
        UsageError: a mistake in the settings; nothing is written.
        RunFailed: the run failed or diverged; the error is in ``train.log`` in its directory.
        KeyboardInterrupt: the run was stopped (a ``RunInterrupted``, whose message contains the command that resumes it).
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
    """The overrides, with ``directory`` and ``trust`` as overrides.

    Raises:
        UsageError: an override is an option of ``mnist-train``, or asks for a sweep.
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
    """Read one run directory: status, record, configuration, metrics.

    Raises:
        UsageError: it is missing, damaged, or not a run directory of this project.
    """
    return read_run(path)


def load_runs(*paths: str | Path) -> list[dict[str, Any]]:
    """Read several runs, each as one flat dict, for ``pandas.DataFrame(records)``.

    Keys: ``directory``, ``status``, ``name``, ``seed``, every setting by its dotted key (``optimizer.lr``; a list as text:
    ``"[64,64]"``), the metrics of the last epoch (``test_accuracy``, a fraction; ``test_loss``, nats), ``parameters``,
    ``macs``, ``threads``, ``device``, ``backend``, ``config_hash``, ``error``, and ``seconds`` (total). All dicts have the
    same keys; a missing value is None.

    Args:
        paths: run directories, folders of them (a sweep, ``outputs``), or patterns (``"outputs/**/mlp-*"``).

    Raises:
        UsageError: a path does not exist, or a run directory is damaged.
    """
    from mnist_exp.reports.collect import paths_of

    rows = [_row(read_run(path)) for path in paths_of([str(path) for path in paths])]
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _row(run: Run) -> dict[str, Any]:
    from mnist_exp.hashing import flatten

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
    """The trained network of a run, on the CPU and in evaluation mode.

    Its input is (N, 1, S, S), or (N, 3, S, S) in colour, float32, normalised; its output logits (N, C), float32. PyTorch
    computes it, so that hooks, ``torch.save`` and ``torch.export`` work; the C kernels that may have trained it round
    differently. The state of PyTorch's random generators is not changed.

    Args:
        path: run directory.
        trust: packages whose code may run besides ours and PyTorch's: ``["mynet"]`` for your own network.

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
    """A list of packages; a single name may be a string."""
    return [trust] if isinstance(trust, str) else list(trust)
