"""What mkdocs is told beside mkdocs.yml: pages found by folder, files from outside docs/, links that leave it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files of the repository's root that are pages too.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """`FOLDER/*` in the navigation becomes the pages of the folder."""
    docs = Path(config["docs_dir"])
    for entry in config["nav"]:
        for title, value in entry.items():
            if isinstance(value, str) and value.endswith("/*"):
                entry[title] = pages_of(docs, value.removesuffix("/*"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=text_of(source, name, config["repo_url"])))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point links that leave docs/ at the page made of their file, or at the repository."""
    name = page.file.src_uri
    if name in PAGES.values():
        return markdown
    return adapted(markdown, posixpath.join("docs", name), name, config["repo_url"])


def pages_of(docs: Path, folder: str) -> list[str]:
    """The index of a folder and the pages below it, in the order in which it links to them."""
    index = (docs / folder / "index.md").read_text(encoding="utf-8")
    linked = dict.fromkeys(re.findall(r"\]\(([\w.-]+\.md)[)#]", index))
    rest = sorted(
        path.name for path in (docs / folder).glob("*.md") if path.name not in (*linked, "index.md")
    )
    return [f"{folder}/{name}" for name in ("index.md", *linked, *rest)]


def text_of(source: str, name: str, repository: str) -> str:
    """A file of the repository's root as the page `name`."""
    return adapted((ROOT / source).read_text(encoding="utf-8"), source, name, repository)


def adapted(markdown: str, source: str, name: str, repository: str) -> str:
    """Markdown of the file `source`, as the page `name` of docs/ has to say it.

    Nested lists are indented by four columns and lists begin after an empty line, which GitHub does not need.
    """

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if not (ROOT / target).exists():
            return found[0]  # mkdocs says that it leads nowhere
        return f"]({located(target, name, repository)}{found[2] or ''})"

    markdown = LINK.sub(link, markdown)
    markdown = re.sub(r"^( {2,})(?=- )", lambda found: found[1] * 2, markdown, flags=re.MULTILINE)
    return re.sub(r"^(  \S.*)\n(?=- )", r"\1\n\n", markdown, flags=re.MULTILINE)


def located(target: str, name: str, repository: str) -> str:
    """Where a path of the repository is found from the page `name`."""
    page = PAGES.get(target)
    if page is None and target.startswith("docs/") and not target.startswith("docs/replays/"):
        page = target.removeprefix("docs/")
    if page is not None:
        return posixpath.relpath(page, posixpath.dirname(name) or ".")
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{repository.rstrip('/')}/{kind}/main/{target}"
