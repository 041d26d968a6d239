"""What the documents name exists: files, links, modules, commands and configuration keys."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import rb_jax
from rb_jax.cli import VERBS

ROOT = Path(rb_jax.__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_imports_what_there_is(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rb_jax"):
                module = importlib.import_module(str(node.module))
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_anchors_are_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            other = page.parent / target if target else page
            headings = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"


def slug(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_in_backquotes_exist(page):
    """Paths of the package, from the root or from rb_jax/."""
    ours = page.read_text("utf-8").split("## Paper, authors' code")[0]  # there are theirs
    for name in re.findall(r"`([\w./]+/[\w./]+\.(?:py|md|json|txt))`", ours):
        if name.split("/")[0] in FOLDERS:
            assert (ROOT / name).exists() or (ROOT / "rb_jax" / name).exists(), name


FOLDERS = {"rb_jax", "configs", "docs", "tests", "benchmarks", "tpu"} | {
    path.name for path in (ROOT / "rb_jax").iterdir() if path.is_dir()
}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_verbs_exist(page):
    for words in re.findall(r"^rb-jax ([a-z]+(?: [a-z]+)?)", page.read_text("utf-8"), re.MULTILINE):
        first = words.split()[0]
        known = {verb.split()[0] for verb in VERBS} | {"help"}
        assert first in known, words
        if first == "data" and " " in words:
            assert words in VERBS, words
