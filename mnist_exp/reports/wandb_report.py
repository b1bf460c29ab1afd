"""The comparison as a W&B Report in the project of its runs.

Only ``publish`` uses the network.
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mnist_exp.errors import UsageError
from mnist_exp.loggers.wandb_place import allowed_place
from mnist_exp.loggers.wandb_private import report_model
from mnist_exp.loggers.wandb_service import end_service, start_service, within
from mnist_exp.reports.build import Report
from mnist_exp.reports.collect import Arm
from mnist_exp.reports.figures import CURVES, shown_arms, style
from mnist_exp.reports.markdown import METHOD, arms_table, baseline_sentence, heading, pairs_table, problems_table
from mnist_exp.runs import Run
from mnist_exp.runs.record import WandbRun
from mnist_exp.runs.settings import ABSENT

SECONDS = 60.0  # the longest wait for the server, from login to the saved report
SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST_IN_TITLE = 3  # arms
LONGEST_TITLE = 120  # characters


def project_of(report: Report) -> tuple[str | None, str]:
    """The entity (None: the account's default) and the project of most runs.

    Raises:
        UsageError: none of the runs was logged to W&B.
    """
    places: Counter[tuple[str | None, str]] = Counter()
    for run in _runs(report):
        if identity := _identity(run):
            places[identity.entity, str(identity.project)] += 1
    if not places:
        raise UsageError("--wandb: none of these runs was logged to Weights & Biases; train with logger=wandb")
    entities = [entity for (entity, _), _ in places.most_common() if entity]  # offline runs have none
    return (entities[0] if entities else None), places.most_common(1)[0][0][1]


def specification(report: Report) -> dict[str, Any]:
    """The content that ``publish`` sends, except the server's id of the project. Does not use the network."""
    entity, project = project_of(report)
    workspaces = _workspaces()
    made = workspaces.Report(
        project=project, entity=entity or "", title=title_of(report), description=report.headline[:900], width="fluid",
        blocks=_blocks(report, workspaces, entity, project, server=False),
    )  # fmt: skip
    model = report_model(made)
    return {
        "entityName": entity,
        "projectName": project,
        "displayName": model.display_name,
        "description": model.description,
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def publish(report: Report, place: str | None = None) -> str:
    """Save the report on the server that W&B is logged in to, and return its address.

    Args:
        place: PROJECT or ENTITY/PROJECT in which the report may be saved; the records of runs, which may be another
            person's, do not decide it. None: WANDB_ENTITY and WANDB_PROJECT, else mnist-exp of the account.

    Raises:
        UsageError: no API key, the runs are in another project, or the server does not answer in time or refuses.
    """
    entity, project = project_of(report)
    workspaces = _workspaces()
    import wandb

    start_service()
    try:
        # Checked here, because wandb.Api would ask the user.
        if not wandb.login(prompt=False, verify=False):
            raise UsageError("--wandb: no API key is configured; wandb login, or --wandb-dry-run")
    except wandb.errors.Error as error:
        raise UsageError(f"--wandb: the API key cannot be used: {' '.join(str(error).split())}") from error
    addresses: list[str] = []

    def save() -> None:
        own = wandb.Api().default_entity
        owner = entity or own
        allowed_entity, allowed_project = allowed_place(place)
        if project != allowed_project or owner not in {own, allowed_entity}:
            raise UsageError(
                f"the runs are in project {project} of {owner}; if the report is to be saved there, type "
                f"--wandb-project {shlex.quote(f'{owner}/{project}')}"
            )
        made = workspaces.Report(
            project=project, entity=owner, title=title_of(report), description=report.headline[:900], width="fluid",
            blocks=_blocks(report, workspaces, owner, project, server=True),
        )  # fmt: skip
        made.save()
        addresses.append(str(made.url))

    try:
        answered = within(SECONDS, save)
    except Exception as error:
        end_service()
        raise UsageError(f"--wandb: {' '.join(str(error).split())[:300]}") from error
    if not answered:
        end_service()
        raise UsageError(f"--wandb: the server did not answer within {SECONDS:g} s; --wandb-dry-run needs none")
    return addresses[0]


def _workspaces() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses pydantic's old interface
            import wandb_workspaces.reports.v2 as workspaces
    except ImportError as error:
        raise UsageError("--wandb needs wandb-workspaces: pip install 'mnist-exp[workspaces]'") from error
    return workspaces  # type: ignore[no-any-return, unused-ignore]  # typed or not, by its version


def _runs(report: Report) -> list[Run]:
    return [run for arm in report.comparison.arms for run in [*arm.runs.values(), *arm.others]]


def _identity(run: Run) -> WandbRun | None:
    identity = run.record.wandb
    return identity if identity is not None and identity.mode in {"online", "offline"} else None


def title_of(report: Report) -> str:
    """The sweep, or the arms if they are few, and the number of runs."""
    comparison = report.comparison
    sweeps = {run.record.sweep for run in _runs(report)}
    (sweep,) = sweeps if len(sweeps) == 1 else (None,)
    arms = [arm.label for arm in comparison.arms]
    subject = sweep or (" against ".join(arms) if len(arms) <= MOST_IN_TITLE else None)
    return f"{subject}: {heading(comparison)}"[:LONGEST_TITLE] if subject else heading(comparison)


def _blocks(report: Report, w: ModuleType, entity: str | None, project: str, *, server: bool) -> list[Any]:
    """The blocks of the report, without those that would be empty; ``w`` is wandb_workspaces.reports.v2."""
    comparison = report.comparison
    arms = [arm for arm in shown_arms(report.rows) if _ids(arm)]
    notes = "\n".join(f"- {note}" for note in [*comparison.notes[:20], *_left_out(report, arms)])
    blocks = [w.MarkdownBlock(text=report.headline), *([w.MarkdownBlock(text=notes)] if notes else [])]
    blocks += [w.H2(text="Arms"), w.MarkdownBlock(text=arms_table(report.rows))]
    if arms:
        key = _group(report, arms)
        by_arm = _grid(w, arms, key, {"entity": entity, "project": project} if server else {})
        splits = [split for split in SPLITS if _is_recorded(arms, f"{split}_loss")]
        blocks += [w.H2(text="Curves"), by_arm(_curves(w, key, splits))]
        blocks += [w.H2(text="Results"), by_arm(_bars(w, arms, key, splits))]
    if report.pairs:
        blocks += [w.H2(text=f"Against the baseline: {comparison.arms[comparison.baseline].label}")]
        blocks += [w.MarkdownBlock(text=f"{baseline_sentence(comparison)} {METHOD}\n\n{pairs_table(report.pairs)}")]
    if arms:
        ids = [run_id for arm in arms for run_id in _ids(arm)]
        # Not grouped, because these panels show single runs.
        all_runs = w.Runset(
            name="all runs", filters=f"ID in {ids!r}", **({"entity": entity, "project": project} if server else {})
        )
        blocks += [w.H2(text="Settings and errors of single runs")]
        blocks += [w.PanelGrid(runsets=[all_runs], panels=_of_single_runs(w, report, arms, splits))]
    if comparison.problems:
        blocks += [w.H2(text="Not counted"), w.MarkdownBlock(text=problems_table(comparison))]
    return [*blocks, w.H2(text="Runs"), w.MarkdownBlock(text=_links(report))]


def _group(report: Report, arms: Sequence[Arm]) -> str:
    """The key of W&B's configuration that is equal in all runs of an arm, and whose value the legend shows.

    It is the name of the arm. Runs of earlier versions have none, and one arm has several if its settings were typed in several
    ways; then it is a setting with another value in each arm, and if there is none, one with any value.
    """
    if all(len(names := _names(arm)) == 1 and None not in names for arm in arms):
        return "arm"
    places = [report.comparison.arms.index(arm) for arm in arms]
    telling = (
        column.key
        for column in report.comparison.varied
        if len({column.shown(place) for place in places}) == len(arms) > 1
        and all(isinstance(value := column.values[place], int | float | str) and value != ABSENT for place in places)
    )
    return next(telling, "trainer.epochs")


def _names(arm: Arm) -> set[str | None]:
    return {identity.arm for run in arm.curves() if (identity := _identity(run))}


def _grid(w: ModuleType, arms: Sequence[Arm], key: str, of_project: dict[str, Any]) -> Callable[[list[Any]], Any]:
    """A function that makes a grid of panels with a set of runs for each arm, grouped into one line, in the arm's colour."""
    sets = [
        w.Runset(name=arm.label[:100], filters=f"ID in {_ids(arm)!r}", groupby=[f"config.{key}"], **of_project)
        for arm in arms
    ]
    colours: dict[Any, str] = {}
    for position, (arm, runset) in enumerate(zip(arms, sets, strict=True)):
        value = str(*_names(arm)) if key == "arm" else str(arm.settings[key])
        group = w.RunsetGroup(runset_name=runset.name, keys=(w.RunsetGroupKey(key=w.Config(key), value=value),))
        colours[group] = style(position)[0]
    return lambda panels: w.PanelGrid(runsets=sets, panels=panels, custom_run_colors=colours)


def _is_recorded(arms: Sequence[Arm], metric: str) -> bool:
    return any(metric in run.metrics[-1] for arm in arms for run in arm.curves() if run.metrics)


def _curves(w: ModuleType, key: str, splits: Sequence[str]) -> list[Any]:
    return [
        w.LinePlot(
            title=f"{SPLITS[split]} {metric}", x="epoch", y=[f"{split}/{metric}"], title_x="epoch", groupby=w.Config(key),
            groupby_aggfunc="mean", groupby_rangefunc="minmax", log_y=metric == "loss" or None,
        )
        for metric in ("loss", "accuracy") for split in splits
    ]  # fmt: skip


def _in_summary(arms: Sequence[Arm], split: str) -> str:
    """The name of an accuracy in W&B's summary, which has the best and the last validation value except in W&B sweeps."""
    identities = [identity for arm in arms for run in arm.curves() if (identity := _identity(run))]
    has_best = all(identity.arm is not None and identity.sweep is None for identity in identities)
    return "val/accuracy.last" if split == "val" and has_best else f"{split}/accuracy"


def _bars(w: ModuleType, arms: Sequence[Arm], key: str, splits: Sequence[str]) -> list[Any]:
    accuracies = [(f"{SPLITS[split]} accuracy", _in_summary(arms, split)) for split in splits if split != "train"]
    return [
        w.BarPlot(
            title=title, metrics=[metric], groupby=w.Config(key), groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for title, metric in [*accuracies, ("parameters", "parameters"), ("seconds", "seconds")]
    ]  # fmt: skip


def _of_single_runs(w: ModuleType, report: Report, arms: Sequence[Arm], splits: Sequence[str]) -> list[Any]:
    """Panels of settings, where there are several, and of errors."""
    varied = report.comparison.varied
    result = _in_summary(arms, "val" if "val" in splits else "test")
    columns = [w.ParallelCoordinatesPlotColumn(metric=w.Config(column.key)) for column in varied[:12]]
    columns.append(w.ParallelCoordinatesPlotColumn(metric=w.SummaryMetric(result)))
    panels = [w.ParallelCoordinatesPlot(columns=columns, title="settings and accuracy")] if varied else []
    panels += [w.ParameterImportancePlot(with_respect_to=result)] if varied else []
    panels += [w.RunComparer(diff_only=True)] if sum(len(_ids(arm)) for arm in arms) > 1 else []
    panels += [w.MediaBrowser(title="pictures of errors", media_keys=["confusion_matrix", "worst_digits", "errors"])]
    return panels


def _ids(arm: Arm) -> list[str]:
    return [str(identity.id) for run in arm.curves() if (identity := _identity(run))]


def _left_out(report: Report, arms: Sequence[Arm]) -> list[str]:
    runs = _runs(report)
    unknown = sum(_identity(run) is None for run in runs)
    notes = [f"{unknown} of {len(runs)} runs were not logged to W&B: they are in the tables only"] if unknown else []
    if len(report.rows) > len(arms):
        notes.append(f"Panels show {len(arms)} of {len(report.rows)} arms (at most {CURVES}); the tables show all")
    return notes


def _links(report: Report) -> str:
    lines = []
    for arm in report.comparison.arms:
        links = [
            f"[seed {seed}]({identity.url})" if identity.url else f"seed {seed} (offline, `{identity.id}`)"
            for seed, run in arm.runs.items()
            if (identity := _identity(run))
        ]
        lines.append(f"- {arm.label}: {', '.join(links) or 'not on W&B'}")
    return "\n".join(lines)
