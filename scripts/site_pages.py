"""Pages of the documentation site that are not files of docs/: a hook of MkDocs, named in mkdocs.yml.

README.md, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are in the root of the repository, and documents link to source files.
Each of these files becomes a page of the site, so that all links between files stay inside the site.
"""

from __future__ import annotations

import ast
import posixpath
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
# Documents outside docs/, and the names of their pages.
DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".ipynb": "json", ".toml": "toml", ".txt": "text"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the documents outside docs/, and a page for each file or folder that a document links to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    sources = sorted(
        {target for name, text in texts.items() for target in _targets(text, name) if _page(target) is None}
    )
    for name, page in DOCUMENTS.items():
        files.append(File.generated(config, page, content=texts[name]))
    for source in sources:
        page = File.generated(config, _source_page(source), content=_shown(source))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links between files of the repository by links between pages."""
    pages = {page: name for name, page in DOCUMENTS.items()}
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    name = pages.get(here, f"docs/{here}")

    def replaced(link: re.Match[str]) -> str:
        target = _resolved(link[1], name)
        to = _page(target) or _source_page(target)
        return posixpath.relpath(to, posixpath.dirname(here) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def _targets(text: str, name: str) -> Iterator[str]:
    for part in FENCE.split(text):
        if not part.startswith("```"):
            yield from (_resolved(link, name) for link in LINK.findall(part))


def _resolved(link: str, name: str) -> str:
    """The path in the repository of the target of a link in the file ``name``.

    Raises:
        FileNotFoundError: the target does not exist.
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    if not (ROOT / target).exists() or target.startswith(".."):
        raise FileNotFoundError(f"{name}: {link} does not exist")
    return target


def _page(target: str) -> str | None:
    """The site's page or picture for a path of the repository; None for source files."""
    return DOCUMENTS.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)


def _source_page(target: str) -> str:
    return f"source/{target}.md" if (ROOT / target).is_file() else f"source/{target}/index.md"


def _shown(source: str) -> str:
    """A page with a file's text, or with a line for each file of a folder."""
    path = ROOT / source
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        return f"# {path.name}\n\n`{source}`\n\n````{LANGUAGES.get(path.suffix, '')}\n{text.rstrip()}\n````\n"
    listed = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = listed.split() or [file.relative_to(ROOT).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
    rows = [f"| `{name.removeprefix(source).lstrip('/')}` | {_summary(ROOT / name)} |" for name in names]
    return "\n".join([f"# {source}", "", "| file | |", "|---|---|", *rows, ""])


def _summary(file: Path) -> str:
    """The first line of a file's docstring or comment."""
    if file.suffix == ".py":
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    elif file.suffix in {".yaml", ".h", ".c"}:
        found = re.match(r"(?:#|//|/\*) ?(.*?)(?:\*/)?$", file.read_text(encoding="utf-8"), re.MULTILINE)
        text = found[1] if found else ""
    else:
        text = ""
    line = re.sub(r"[\[\]|<]", lambda found: f"\\{found[0]}", text.partition("\n")[0])
    return line.replace("``", "`")
