"""What the site shows of files outside of `docs/`, so that nothing is said twice: they are pages where they stand."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
SHOWN = (
    "*.md",
    "benchmarks/*.md",
    "benchmarks/*.json",
    "benchmarks/*.png",
    "examples/*.*",
    "examples/*/*.png",
    "examples/web/README.md",
    "saved_models/README.md",
    "saved_models/*/README.md",
    "saved_models/*/*.png",
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files, config):
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages: those of `docs/` stand at the top."""
    source = page.file.src_uri
    if source == "README.md":
        # The template has a heading of its own.
        page.meta |= {"template": "home.html", "title": config.site_name, "hide": ["navigation"]}
        markdown = markdown.removeprefix(f"# {config.site_name}\n")
    folder = posixpath.dirname(source if page.file.generated_by else f"docs/{source}")

    def moved(link):
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / target).exists():
            return link[0]
        return f"]({posixpath.relpath(target.removeprefix('docs/'), posixpath.dirname(source) or '.')}"

    return LINK.sub(moved, markdown)
