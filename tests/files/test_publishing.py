"""What is published: versions that agree, code that the registry's scanner accepts, and nothing but the pack."""

import ast
import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ("core", "patch", "nodes", "web", "workflows", "subgraphs", "locales")
FILES = [
    ROOT / "__init__.py",
    *(f for d in SHIPPED for f in (ROOT / d).rglob("*") if f.is_file() and "__pycache__" not in f.parts),
]
PYTHON = [f for f in FILES if f.suffix == ".py"]
# rules that flagged other packs' versions (../shared/users.md, section 5)
BANNED = {"eval", "exec", "compile", "__import__"}
MODULES = {"subprocess", "pickle", "marshal", "socket", "ctypes", "urllib.request", "requests", "http", "pip", "shelve"}
WORDS = re.compile(r"\.connect\(|\.bind\(|\.send\(|raw\.githubusercontent\.com|eval\(|new Function\(|innerHTML")


def name(file):
    return str(file.relative_to(ROOT))


def test_no_code_is_run_that_is_not_in_the_pack(subtests):
    assert len(PYTHON) > 100
    for file in PYTHON:
        with subtests.test(name(file)):
            tree = ast.parse(file.read_text())
            called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
            assert not called & BANNED
            assert not {m for m in imported if any(m == b or m.startswith(f"{b}.") for b in MODULES)}


def test_the_environment_is_read_in_one_place():
    readers = [name(f) for f in PYTHON if re.search(r"os\.(environ|getenv)", f.read_text())]
    assert readers == ["patch/memo/instance.py"]


def test_nothing_that_looks_like_the_network_or_like_code(subtests):
    files = [f for f in FILES if f.suffix in (".js", ".md", ".json", ".py", ".css")]
    assert len(files) > len(PYTHON)
    for file in files:
        with subtests.test(name(file)):
            assert WORDS.findall(file.read_text()) == []


def test_what_is_for_developers_is_left_out():
    ignored = [line for line in (ROOT / ".comfyignore").read_text().split("\n") if line and not line.startswith("#")]
    assert {"tests/", "demo/", "bench/", "tools/", ".ci/", "Makefile"} <= {*ignored}
    assert not {*SHIPPED, "README.md", "LICENSE", "pyproject.toml"} & {i.rstrip("/") for i in ignored}
    assert sum(f.stat().st_size for f in FILES) < 6e6


def test_the_changelog_has_this_version_first():
    found = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found[0] == PROJECT["project"]["version"]


def test_it_asks_for_nothing_that_comfyui_does_not_bring():
    """Whoever installs it must not have their torch, or anything else, exchanged."""
    wanted = {re.split(r"[<>=!~\[ ]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert wanted <= {"blake3", "psutil", "safetensors"}


def test_what_the_registry_asks_of_pyproject():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{2,99}", project["name"]) and "comfyui" not in project["name"]
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file()
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= comfy.keys()
    for picture in ("Icon", "Banner"):
        assert (ROOT / comfy[picture].partition("/blob/main/")[2].partition("?")[0]).is_file()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_pages_are_short_and_their_links_lead_somewhere(subtests):
    assert len(PAGES) > 4
    for page in PAGES:
        with subtests.test(name(page)):
            text = page.read_text("utf-8")
            assert len(text.splitlines()) <= 150
            for place in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
                assert place.startswith("https://") or (page.parent / place).exists(), place
            titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= headings


def test_all_that_is_pinned_is_installed():
    pins = tomllib.loads((ROOT / "tools" / "pins.toml").read_text())
    readers = "".join((ROOT / "tools" / name).read_text() for name in ("setup.py", "validate.py"))
    assert [table for table in pins if not re.search(rf"pins\[['\"]{table}['\"]\]", readers)] == []
