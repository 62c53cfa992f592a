"""The pages say what the code does: derived tables are current, examples run, links and options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/algorithms").glob("*.md"))]


def test_tables_are_current() -> None:
    result = subprocess.run(
        [sys.executable, "docs/make_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, as a reader would type them, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in re.findall(r"^[ ]*```python\n(.*?)^[ ]*```", page.read_text(), re.S | re.M):
        lines = block.splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        code = "\n".join(line[indent:] for line in lines)
        code = re.sub(r"\.learn\(([\d_]+)", ".learn(256", code)
        if "class TestMine" not in code and "pytest" not in code:
            exec(compile(code, f"{page.name}", "exec"), namespace)


def test_command_lines_name_existing_options() -> None:
    """Every ``sb3-pg`` command in the pages is accepted by the parser."""
    from sb3_pg_ext.experiments.cli import _parser as parser

    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^sb3-pg (\w+ .*)$", text, re.M):
            words = re.sub(r"\s+#.*", "", line).split()
            parser().parse_args([w.strip("`'\"") for w in words])
