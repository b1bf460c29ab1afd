"""Composing the configuration: where ``conf/`` lies, what it may interpolate, and what Hydra's refusals mean.

Light on purpose: a mistyped key is answered with nothing imported but Hydra.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.mistakes import UsageError, nearest

PACKAGE = Path(__file__).parent
# A checkout has conf/ beside the package; an installed wheel carries it inside.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "conf" / "train.yaml").is_file() else PACKAGE / "conf"

OmegaConf.register_new_resolver("run_token", lambda: secrets.token_hex(3), use_cache=True, replace=True)


HELP = """\
mnist-train: train LeNet-5 variants and MLPs on MNIST.

  mnist-train                                            LeNet-5 on full MNIST
  mnist-train model=mlp regularization=dropout seed=3    swap a group, override a line
  mnist-train -m seed=0,1,2                              several runs
  mnist-train -m sweep=mlp_width                         a whole sweep; the same again finishes it
  mnist-train -m sweep.resume=DIR                        finish any sweep
  mnist-train resume=DIR                                 continue an interrupted run
  mnist-train --cfg job --resolve                        print the configuration, run nothing

mnist-eval DIR evaluates a finished run; mnist-report DIR... compares runs. --hydra-help explains Hydra's own flags.
"""


def first_comment(file: Path) -> str:
    """What a file of ``conf/`` says of itself: its first comment that is no directive to Hydra."""
    with file.open(encoding="utf-8") as lines:
        comments = (line.removeprefix("# ").rstrip() for line in lines if line.startswith("# "))
        return next((comment for comment in comments if not comment.startswith("@package")), "")


def help_text() -> str:
    """What ``--help`` prints: examples, every choice with the first comment of its file, and the root knobs.

    Hydra's own help reads and composes every file of ``conf/``, which takes longer the more presets there are.
    """
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        group, _, choice = file.relative_to(CONF).with_suffix("").as_posix().partition("/")
        if group == "hydra":
            group, _, choice = f"hydra/{choice}".rpartition("/")
        if choice and not choice.startswith("common/"):
            groups.setdefault(group, []).append(f"  {f'{group}={choice}':34s} {first_comment(file)}")
    knobs = (CONF / "train.yaml").read_text(encoding="utf-8").partition("\n\n")[2].partition("\nhydra:")[0]
    sections = [HELP, "Choices (--cfg job prints the knobs of each)"]
    sections += ["\n".join(choices) for choices in groups.values()]
    sections += ["Knobs of the run itself", "\n".join(f"  {line}" for line in knobs.strip().splitlines())]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, every interpolation replaced by its value.

    Raises:
        UsageError: a mandatory value is missing or an interpolation leads nowhere.
    """
    try:
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rsplit(": ", 1)[-1].splitlines()[0]
        raise UsageError(f"{key} is not set and has no default; type {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def explain_composition(error: Exception) -> str:
    """What Hydra refuses while it composes: an unknown key, an unknown choice, a malformed override."""
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override} is not a valid override; quote it for the shell: 'KEY=VALUE'"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        choices = ", ".join(error.options)
        return f"{group}={choice} is not a choice; choose from {choices}{nearest(choice, error.options)}"
    if several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'", text):
        key, _, values = several[1].partition("=")
        return f"{several[1]} names several values; train each with mnist-train -m, or write a list as {key}=[{values}]"
    if text.startswith("Could not override '"):
        key = text.split("'")[1]
        prefix, _, _ = key.rpartition(".")
        siblings = [f"{prefix}.{name}" if prefix else name for name in _siblings(error)]
        return f"{key} is not a key{nearest(key, siblings) or '; mnist-train --cfg job lists them'}"
    return text


def _siblings(error: BaseException | None) -> list[str]:
    """The keys beside the one that was not found, which OmegaConf's exception knows."""
    while error is not None:
        parent = getattr(error, "parent_node", None)
        if isinstance(parent, DictConfig):
            return [str(name) for name in parent if name != "hydra"]
        error = error.__cause__
    return []
