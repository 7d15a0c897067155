"""Links, navigation and command lines in the documentation are true."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from seqmodels.config import load, override

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMAND = re.compile(r"(?:python train\.py|python -m [\w.]+)[^`\n]*")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}; {file.name} has no such heading"


def test_navigation_lists_every_page():
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {page.name for page in ROOT.glob("docs/*.md")}


def documented() -> list[str]:
    found = {match.split("#")[0].strip() for page in PAGES for match in COMMAND.findall(page.read_text())}
    return sorted(line for line in found if "…" not in line and "..." not in line)


def options_of(source: Path) -> str:
    files = [source, ROOT / "seqmodels/cli.py", source.parent / "command.py"]  # the last: what tables share
    return "".join(file.read_text() for file in files if file.exists())


@pytest.mark.parametrize("line", documented())
def test_commands_exist_and_know_their_flags(line):
    words = shlex.split(line.split(" (")[0])
    if words[1] == "train.py":
        source, rest = ROOT / "train.py", words[2:]
    else:
        if words[2].split(".")[0] not in ("seqmodels", "eval", "benchmarks"):
            return  # another project's tool
        spec = importlib.util.find_spec(words[2])
        assert spec is not None and spec.origin, f"{line}: no module {words[2]}"
        source, rest = Path(spec.origin), words[3:]
    dotted = []
    for number, word in enumerate(rest):
        if not word.startswith("--") or word == "--help":
            continue
        if "." in word:
            dotted += rest[number : number + 2]
        else:
            assert f'"{word}"' in options_of(source), f"{line}: {source.name} has no {word}"
    if dotted and source.name == "train.py":
        override(load(ROOT / rest[rest.index("--config") + 1]), dotted)
    elif dotted:
        field = dotted[0].split(".")[1].replace("-", "_")
        assert any(f"    {field}:" in file.read_text() for file in source.parent.glob("*.py")), f"{line}: {field}?"


def test_the_readme_counts_the_claims_that_hold():
    """Of every table with published results."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| \[`(\w+)`\].*\| (\d+ of \d+)", readme, re.M))
    published = {}
    for file in (ROOT / "eval/tables/results").glob("*/laptop/table.md"):
        kinds = re.findall(r"^- \*\*(holds|fails|not measured)\*\*", file.read_text(encoding="utf-8"), re.M)
        published[file.parts[-3]] = f"{kinds.count('holds')} of {len(kinds)}"
    assert said == published
