"""The output of ``mnist-train --help``: everyday settings and groups; with a topic, all choices and settings of a group.

Groups, choices, defaults and explanations are read from the configuration files, without composing them, which would be slow.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from mnist_exp.compose import CONF, choices, content_of, first_comment, groups
from mnist_exp.errors import UsageError, nearest
from mnist_exp.plain import refuse_deep

WIDTH = 80  # columns
COLUMN = 38  # where explanations begin at the latest
EXAMPLES = """\
mnist-train: train LeNet-5 variants and MLPs on MNIST.

  mnist-train                         LeNet-5 on full MNIST
  mnist-train model=mlp seed=3        another choice of a group, another value
  mnist-train -m seed=0,1,2           several runs
  mnist-train -m sweep=mlp_width      a whole sweep; the same again finishes it
  mnist-train resume=DIR              continue an interrupted run
  mnist-train --cfg job --resolve     print the configuration, run nothing
  mnist-train --help model            more of a group; or GROUP/CHOICE, KEY
"""
EVERYDAY = (
    *("seed", "trainer.epochs", "trainer.batch_size", "trainer.device", "optimizer.lr", "regularization.dropout"),
    *("data.val_size", "data.limit", "logger.mode"),
)
# Of Hydra's plugins; each but the first is an optional part of the installation: docs/sweeps.md.
LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
ENDING = """\
mnist-eval DIR evaluates a finished run; mnist-report DIR... compares runs.
--hydra-help explains Hydra's own flags.
"""


@dataclass(frozen=True)
class Setting:
    """One key of a configuration file.

    Attributes:
        key: dotted, as typed. value: its text in the file. comment: behind it, or empty.
    """

    key: str
    value: str
    comment: str

    def columns(self) -> tuple[str, str]:
        """``KEY=VALUE`` and the explanation."""
        if source := re.fullmatch(r"\$\{([a-z_]+(?:\.\w+)+)\}", self.value):
            return self.key, f"as {source[1]}{'; ' if self.comment else ''}{self.comment}"
        if variable := re.fullmatch(r"\$\{(environment|environment_list|oc\.env):(\w+)(?:,(.*))?\}", self.value):
            kind, name, default = variable.groups()
            value = default or ("[]" if kind == "environment_list" else "null")
            return f"{self.key}={value}", f"{self.comment}; {name}, if it is set".removeprefix("; ")
        return f"{self.key.removeprefix('hydra.sweeper.params.')}={self.value}", self.comment


def help_text(topics: Sequence[str] = (), folders: Sequence[Path] = (CONF,)) -> str:
    """The overview, or the text about each topic: a group, ``GROUP/CHOICE`` or ``GROUP=CHOICE``, a key, or ``launcher``.

    Args:
        folders: of configuration files.

    Raises:
        UsageError: a topic is none of these.
    """
    if not topics:
        return _overview(folders)
    return "\n".join("\n".join(line.rstrip() for line in _about(topic, folders)) + "\n" for topic in topics)


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Lines of at most ``width`` columns; commands such as mnist-train are not broken at a hyphen."""
    return textwrap.wrap(text, width, break_on_hyphens=False)


def two_columns(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A list: entries, and explanations beside them, or below those that are too long."""
    column = min(COLUMN, max((len(left) + 4 for left, _ in entries), default=0))
    for left, right in entries:
        lines = wrapped(right, WIDTH - column) or [""]
        if len(left) + 4 > column:
            yield from _broken_at_commas(left)
        else:
            yield f"  {left}".ljust(column) + lines.pop(0)
        yield from (" " * column + line for line in lines if line)


def _broken_at_commas(entry: str) -> list[str]:
    lines = ["  "]
    for part in re.findall(r"[^,]+,?|,", entry):
        if len(lines[-1] + part) > WIDTH:
            lines.append("    ")
        lines[-1] += part
    return lines


def _overview(folders: Sequence[Path]) -> str:
    defaults = {group: name for group, name in default_choices().items() if name in choices(group, folders)}
    lines = [EXAMPLES, "Groups, typed GROUP=CHOICE; the first choice is the default"]
    for group in _ordered(folders):
        names = _abbreviated(choices(group, folders), defaults.get(group)) or "your own: --config-dir FOLDER"
        lines += _entry(group, names)
    lines += _entry("hydra/launcher", ", ".join(LAUNCHERS))
    lines += ["", "Everyday settings, typed KEY=VALUE; shown with their defaults"]
    known = {setting.key: setting for group in defaults for setting in settings_of(group, defaults[group], folders)}
    known |= {setting.key: setting for setting in _settings_of_file(CONF / "train.yaml", "")}
    for key in EVERYDAY:
        left = f"  {key}={known[key].value}".ljust(30)
        lines.append(left + textwrap.shorten(known[key].comment, WIDTH - len(left), placeholder=" ..."))
    return "\n".join(line.rstrip(" ") for line in [*lines, "", ENDING])


def _entry(group: str, names: str) -> list[str]:
    return textwrap.wrap(names, WIDTH, initial_indent=f"  {group:15s} ", subsequent_indent=" " * 18)


def _abbreviated(names: Sequence[str], default: str | None) -> str:
    """The choices as text, the default first; those in folders as ``FOLDER/...``."""
    ordered = sorted(names, key=lambda name: (name != default, name))
    return ", ".join(dict.fromkeys(name if "/" not in name else f"{name.partition('/')[0]}/..." for name in ordered))


def _ordered(folders: Sequence[Path]) -> list[str]:
    """All groups, in the order of train.yaml, then those of Hydra and the user's."""
    return list(dict.fromkeys([*explained_groups(), *groups(folders)]))


def explained_groups() -> dict[str, str]:
    """The explanation of each group, from the list of defaults in train.yaml."""
    text = (CONF / "train.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^  - ([a-z]+): (?:\w+) *#\s*(.*)", text, re.MULTILINE)
    return dict(found)


def default_choices() -> dict[str, str]:
    """The default choice of each group, from train.yaml; without groups that have none."""
    content = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return {
        group: choice
        for entry in entries
        for group, choice in entry.items()
        if choice is not None and not group.startswith("override ")
    }


def _about(topic: str, folders: Sequence[Path]) -> list[str]:
    group, _, choice = topic.replace("=", "/", 1).rstrip("/").partition("/")
    if group == "hydra":
        inner, _, choice = choice.partition("/")
        group = f"hydra/{inner}"
    if group in {"launcher", "hydra/launcher"}:
        text = f"hydra/launcher: where the jobs of a sweep run: {', '.join(LAUNCHERS)}. docs/sweeps.md explains each."
        return wrapped(text)
    known = _ordered(folders)
    if group in known and not choice:
        return list(_about_group(group, folders))
    if group in known and choice in choices(group, folders):
        return list(_about_choice(group, choice, folders))
    if group in known:
        possible = choices(group, folders)
        raise UsageError(
            f"--help {topic}: {group} has no choice {choice}{nearest(choice, possible)}; it has {', '.join(possible)}"
        )
    if found := list(_about_key(topic.partition("=")[0], folders)):
        return found
    raise UsageError(
        f"--help {topic}: no group and no setting has this name{nearest(topic, known)}; groups are {', '.join(known)}"
    )


def _about_group(group: str, folders: Sequence[Path]) -> Iterator[str]:
    default, names = default_choices().get(group), choices(group, folders)
    explanation = explained_groups().get(group)
    yield from wrapped(f"{group}: {explanation}" if explanation else group)
    yield ""
    ordered = sorted(names, key=lambda name: (name != default, name))
    marks = {default: " (default)"}
    yield from two_columns(
        [(f"{group}={name}{marks.get(name, '')}", _explained(group, name, folders)) for name in ordered]
    )
    if default is None:
        return
    yield ""
    another = f"; of another choice: --help {group}/{ordered[1]}" if ordered[1:] else ""
    yield from wrapped(f"Settings of {group}={default}{another}")
    yield from two_columns([setting.columns() for setting in settings_of(group, default, folders)])


def _explained(group: str, choice: str, folders: Sequence[Path]) -> str:
    """The first comment of a choice, without the command that it shows."""
    comment = first_comment(file_of(group, choice, folders))
    return comment.removeprefix(f"mnist-train {group}={choice}: ").removesuffix(f": mnist-train -m {group}={choice}")


def _about_choice(group: str, choice: str, folders: Sequence[Path]) -> Iterator[str]:
    comments = all_comments(file_of(group, choice, folders))
    yield f"{group}={choice}"
    for comment in comments:
        yield from (f"  {line}" for line in wrapped(comment, WIDTH - 2))
    yield ""
    yield from two_columns([setting.columns() for setting in settings_of(group, choice, folders)])


def _about_key(key: str, folders: Sequence[Path]) -> Iterator[str]:
    """The settings with this key, or with this last part of their key, of every choice; equal ones once."""
    found: dict[Setting, list[str]] = {}
    for setting in _settings_of_file(CONF / "train.yaml", ""):
        found.setdefault(setting, [])
    for group in _ordered(folders):
        if group not in {"experiment", "sweep"}:
            for choice in choices(group, folders):
                for setting in settings_of(group, choice, folders):
                    found.setdefault(setting, []).append(f"{group}={choice}")
    exact = [setting for setting in found if setting.key == key]
    entries = []
    for setting in exact or [setting for setting in found if setting.key.rpartition(".")[2] == key]:
        where = found[setting]
        everywhere = len(where) == len(choices(where[0].partition("=")[0], folders)) if where else True
        comment = setting.comment if everywhere else f"{setting.comment} (with {', '.join(where)})"
        entries.append(replace(setting, comment=comment.strip()).columns())
    yield from two_columns(entries)


def file_of(group: str, choice: str, folders: Sequence[Path]) -> Path:
    """The file of a choice, which need not exist. As for Hydra, ``conf/`` or what replaces it comes before ``--config-dir``."""
    files = [folder / group / f"{choice}.yaml" for folder in reversed(folders)]
    return next((file for file in files if file.is_file()), files[-1])


def all_comments(file: Path) -> list[str]:
    """The comments at the beginning of a file, without Hydra's ``@package`` directive."""
    lines = _text_of(file).splitlines()
    begin = [line for line in lines if line.strip()]
    number = next((number for number, line in enumerate(begin) if not line.startswith("#")), len(begin))
    return [text for line in begin[:number] if not (text := line.lstrip("# ")).startswith("@package")]


def settings_of(group: str, choice: str, folders: Sequence[Path]) -> list[Setting]:
    """The settings of a choice, with those of the files that its list of defaults names."""
    found = {setting.key: setting for setting in _preparation(group)}
    found |= {setting.key: setting for setting in _settings_with_bases(group, choice, folders)}
    return list(found.values())


def _preparation(group: str) -> list[Setting]:
    """The settings that train.yaml gives to every choice of a group: ``- data/common/preparation@data``."""
    text = (CONF / "train.yaml").read_text(encoding="utf-8")
    names = re.findall(rf"^  - ({group}/common/\w+)@{group}\b", text, re.MULTILINE)
    return [setting for name in names for setting in _settings_of_file(CONF / f"{name}.yaml", group)]


def _settings_with_bases(
    group: str, choice: str, folders: Sequence[Path], above: tuple[str, ...] = ()
) -> list[Setting]:
    """The settings of a choice and of those that its list of defaults names, without the choices ``above`` it."""
    file = file_of(group, choice, folders)
    package = re.search(r"^# @package (\S+)", _text_of(file), re.MULTILINE)
    prefix = package[1] if package else group.replace("/", ".")
    found: dict[str, Setting] = {}
    for base in _bases(file):
        if isinstance(base, dict):
            chosen = [
                (str(name).removeprefix("override").strip().lstrip("/"), str(value)) for name, value in base.items()
            ]
            found |= {name: Setting(name, value, "") for name, value in chosen}
        elif base not in {"_self_", choice, *above} and not base.startswith("/"):
            inner = _settings_with_bases(group, base.partition("@")[0], folders, (*above, choice))
            found |= {setting.key: setting for setting in inner}
    found |= {setting.key: setting for setting in _settings_of_file(file, "" if prefix == "_global_" else prefix)}
    found.pop("hydra.mode", None)
    return list(found.values())


def _bases(file: Path) -> list[str | dict[str, object]]:
    bases = content_of(file).get("defaults")
    return [base for base in bases if isinstance(base, str | dict)] if isinstance(bases, list) else []


def _settings_of_file(file: Path, prefix: str) -> Iterator[Setting]:
    """The settings of one file, without those of other files; Hydra's own keys are left out."""
    text = _text_of(file)
    with _one_line_for(file):
        refuse_deep(text)
        root = yaml.compose(text, yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        lines = text.splitlines()
        hidden = {"defaults", "_partial_", "hydra" if file.name == "train.yaml" else ""}
        seen: set[int] = set()
        for key, value in root.value:
            if not (isinstance(key, yaml.ScalarNode) and key.value in hidden):
                yield from _settings_in(key, value, prefix, text, lines, seen)


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _one_line_for(file: Path) -> Iterator[None]:
    """Turn the refusal of a YAML file into a UsageError."""
    try:
        yield
    except (yaml.YAMLError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{file}{where}: {' '.join(str(problem).split())}") from error


def _settings_in(
    key: yaml.Node, value: yaml.Node, prefix: str, text: str, lines: list[str], seen: set[int]
) -> Iterator[Setting]:
    """The settings below a key; a section that an alias repeats (it is in ``seen``) is one setting."""
    if not isinstance(key, yaml.ScalarNode):
        return  # Hydra refuses it
    path = f"{prefix}.{key.value}" if prefix else str(key.value)
    if isinstance(value, yaml.MappingNode) and value.value and id(value) not in seen:
        seen.add(id(value))
        for inner_key, inner in value.value:
            yield from _settings_in(inner_key, inner, path, text, lines, seen)
        return
    shown = text[value.start_mark.index : value.end_mark.index].strip()
    rest = lines[value.end_mark.line][value.end_mark.column :] if value.end_mark.line < len(lines) else ""
    comment = re.match(r"\s*#\s*(.*)", rest)
    yield Setting(path, shown.replace(", ", ",").strip("'"), comment[1] if comment else "")
