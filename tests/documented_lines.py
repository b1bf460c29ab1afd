"""Finds every command line that the project shows to a user, as the user would type it.

The lines are in documents, comments of configuration files, docstrings, and messages in the code. The output of ``--help``
is read where the tests run it. Messages that build a command from the user's command are not included; their own tests
run these commands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = ("mnist-train", "mnist-eval", "mnist-report", "mnist-audit", "mnist-predict", "mnist-demo")
PROGRAM = re.compile(
    r"(?<![\w./`-])(?:mnist-(?:train|eval|report|audit|predict|demo)|python scripts/\w+\.py|wandb (?:sync|sweep|agent))(?= |$)"
)
OVERRIDES = re.compile(r"(?:(?:^| )'?[+~]{0,2}[a-z][\w./@]*=[^\s`]+)+")
SHELLS = {"console", "bash"}
NOT_COMMANDS = {"python", "yaml", "text", "json", "toml", "csv", "diff"}
# In running text a command ends before a word that cannot be an argument.
ARGUMENT = re.compile(
    r"-[a-z]|--[a-z][\w-]*(?:=\S+)?|'[^']+'|\"[^\"]+\"|[+~]{0,2}[\w./@]+=\S+"
    r"|(?:DIR|FOLDER|image)(?:\.\.\.)?|[\w-]*/[\w./*-]*|\w+\.(?:png|jpg)|\d+"
)
TAKES_A_VALUE = {
    "--cfg",
    "--info",
    "--only",
    "--seeds",
    "--output",
    "--baseline",
    "--port",
    "--tried",
    "--runs",
    "--schedule",
}


@dataclass(frozen=True)
class Line:
    """A command line, and the output shown below it."""

    text: str
    output: tuple[str, ...]
    where: str


def documented() -> list[Line]:
    """All lines except those of ``--help``, in the order of the files."""
    lines: list[Line] = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        lines += _markdown(path)
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        lines += _comments(path)
    for folder in ("mnist_exp", "hydra_plugins", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines += _code(path)
    return lines


def in_help(text: str, where: str) -> Iterator[Line]:
    """The lines in the ``--help`` of a command."""
    body = re.sub(r"^usage:.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in body.splitlines():
        yield from _one(line, where)


def _markdown(path: Path) -> Iterator[Line]:
    """Fenced blocks, line by line, and commands in running text."""
    where, fence, command, output = _relative(path), None, "", []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{where}:{number}"
        if line.startswith("```"):
            if command:
                yield Line(command, tuple(output), place)
            command, output = "", []
            fence = line[3:].strip() if fence is None else None
            assert fence is None or fence in SHELLS | NOT_COMMANDS, f"{place}: this block has no known language"
        elif fence is None:
            yield from _code_spans(line, place)
        elif fence == "bash" and line.strip() and not line.startswith("#"):
            yield Line(line.strip(), (), place)
        elif fence == "console" and line.startswith("$ "):
            if command:
                yield Line(command, tuple(output), place)
            command, output = line[2:].strip(), []
        elif fence == "console":
            assert command, f"{place}: output before any command"
            output.append(line)


def _comments(path: Path) -> Iterator[Line]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if comment := re.search(r"(?:^|\s)#\s*(.*)", line):
            yield from _one(comment[1], f"{_relative(path)}:{number}")


def _code(path: Path) -> Iterator[Line]:
    """Docstrings and messages. A value inserted into a message is a directory, or the message has no complete line."""
    text, name = path.read_text(encoding="utf-8"), _relative(path)
    if name.startswith("mnist_exp/") and not re.search("mnist-|scripts/|wandb ", text):
        return  # nothing that PROGRAM matches; reading the rest takes a second
    nodes = list(ast.walk(ast.parse(text)))
    documentation = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node, clean=False)
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.JoinedStr):
            yield from _prose(_filled(node), place)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            for line in node.value.splitlines():
                yield from _one(line, place) if id(node) in documentation else _prose(line.replace("%s", " \0 "), place)


def _filled(message: ast.JoinedStr) -> str:
    """A message with DIR for each value whose position requires a directory; other values end the command."""
    text = ""
    for part in message.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        else:
            text += (
                "DIR" if re.search(r"resume=$|mnist-(?:eval|report|predict|demo) $|wandb sync .*$", text) else " \0 "
            )
    return text


def _one(line: str, where: str) -> Iterator[Line]:
    """A line of plain text: a command followed by an explanation, or running text."""
    stripped = line.strip()
    if PROGRAM.match(stripped) and ("  " in stripped or line.startswith("  ")):
        yield Line(re.split(r"\s{2,}", stripped)[0], (), where)
    else:
        yield from _code_spans(line, where)


def _code_spans(line: str, where: str) -> Iterator[Line]:
    for span in re.findall(r"`+([^`]+)`+", line):
        if (begins := PROGRAM.match(span)) and begins.end() < len(span):
            yield Line(span, (), where)
        elif OVERRIDES.fullmatch(span) and not where.startswith(
            "mnist_exp/"
        ):  # overrides of mnist-train; in mnist_exp/ they may be Python
            several = re.search(r"=[^ ]*,", re.sub(r"\[[^]]*\]|\([^)]*\)", "", span))
            yield Line(f"mnist-train -m {span}" if several else f"mnist-train {span} --cfg job", (), where)
    yield from _prose(re.sub(r"`[^`]*`", "``", line), where)


def _prose(text: str, where: str) -> Iterator[Line]:
    for program in PROGRAM.finditer(text):
        words = [program[0]]
        for word in text[program.end() :].split():
            bare = word.rstrip(",;:.)") if not word.endswith("...") else word
            if word == "\0" or (not ARGUMENT.fullmatch(bare) and words[-1] not in TAKES_A_VALUE):
                break
            words.append(bare)
            if bare != word:
                break
        if len(words) > 1 and words[-1] not in {"-m", "KEY=VALUE", *TAKES_A_VALUE}:
            yield Line(" ".join(words), (), where)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
