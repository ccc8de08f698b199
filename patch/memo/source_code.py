"""The origin of code, and digests of it: ComfyUI's own, that of installed packages, and that of other custom node packs.

ComfyUI's own source is one digest over all of its files, so an update of any of them (LoRA arithmetic, quantisation, a text
encoder) begins with new keys. Installed packages are identified by version. Everything else, usually another custom node
pack, is identified by a digest over the source files of its whole top-level folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import psutil

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest
from . import reasons

Origin = Literal["comfyui", "installed", "other"]

PARTS = ("comfy", "comfy_extras", "nodes.py", "node_helpers.py", "folder_paths.py")
"""A digest of ComfyUI's source that affects the values of encoders and cached nodes."""

KERNELS = (
    "comfy-kitchen", "comfy-aimdo", "xformers", "sageattention", "sageattn3", "flash-attn", "triton", "triton-windows",
    "bitsandbytes", "nunchaku", "torchvision", "torchaudio", "transformers", "tokenizers", "sentencepiece", "numpy", "einops",
    "gguf",
)  # fmt: skip
"""Packages beside torch that compute, or that turn text into tokens."""

_NOT_COMFYUIS = ("custom_nodes", "models", "input", "output", "temp", "user")
SOURCES = (".py", ".json", ".txt", ".model")  # code, and the configurations and vocabularies of encoders and tokenizers
LIMIT = 5_000  # files of another pack that are read
VOCABULARY = 256 << 10  # bytes of a file that is no code, above which its size stands for its content


@lru_cache(maxsize=1)
def process_start() -> float:
    """When this process started, in seconds since 1970."""
    try:  # psutil knows when the system booted in whole seconds only
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        running = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        if running >= 0:
            return time.time() - running
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return min(psutil.Process().create_time(), time.time())


@lru_cache(maxsize=1)
def comfyui_folder() -> str:
    """ComfyUI's own folder, with links resolved."""
    return os.path.dirname(os.path.dirname(os.path.realpath(str(import_module("comfy.ops").__file__))))


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    paths = {p for name, p in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages(), os.path.dirname(os.path.dirname(os.__file__))}
    paths.add(os.path.dirname(os.path.dirname(str(import_module("torch").__file__))))
    return tuple(sorted({os.path.realpath(p) + os.sep for p in paths}))


@lru_cache(maxsize=8192)
def origin(file: str) -> Origin:
    """The owner of a source file. `file` may be a code object's `co_filename`, such as "<string>"."""
    if file.startswith("<frozen ") or file == "<string>":  # Python's own, and its namedtuples and dataclasses
        return "installed"
    path, comfyui = os.path.realpath(file), comfyui_folder()
    if path.startswith(comfyui + os.sep) and not path.startswith(
        tuple(os.path.join(comfyui, d) for d in _NOT_COMFYUIS)
    ):
        return "comfyui"
    if path.startswith(_installed()):
        return "installed"
    return "other"


def origin_of_module(name: str) -> Origin:
    """As origin(), of a module or package by its name."""
    root = name.partition(".")[0]
    if root in ("builtins", *sys.stdlib_module_names):
        return "installed"
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return origin(str(file)) if file else "other"


@lru_cache(maxsize=1)
def comfyui_digest() -> str:
    """Of all source files of ComfyUI that decide what encoders and cached nodes compute.

    Raises NotCacheable where one of them changed since this process started: which code runs is not known then.
    """
    return _digest_of(comfyui_folder(), PARTS)


@lru_cache(maxsize=256)
def pack_digest(file: str) -> str:
    """Of the source files of the pack that `file` belongs to: the folder below custom_nodes, or else the file's top-level package.

    Raises NotCacheable where that is not possible.
    """
    path = Path(os.path.realpath(file))
    if not path.is_file():
        raise NotCacheable(reasons.NO_SOURCE)
    folder = path.parent
    while (folder / "__init__.py").exists() and folder.parent.name != "custom_nodes" and folder != folder.parent:
        folder = folder.parent
    for parent in path.parents:
        if parent.parent.name == "custom_nodes":
            folder = parent
    if (folder / "__init__.py").exists() or folder.parent.name == "custom_nodes":
        return _digest_of(str(folder.parent), (folder.name,), (".py",))
    return _digest_of(str(path.parent), (path.name,), (".py",))


def _digest_of(root: str, parts: tuple[str, ...], endings: tuple[str, ...] = SOURCES) -> str:
    found: list[tuple[str, bytes]] = []
    try:
        for part in parts:
            for path in _files(os.path.join(root, part), endings):
                about = os.stat(path)
                if max(about.st_mtime, about.st_ctime) > process_start():
                    raise NotCacheable(reasons.SOURCE_CHANGED)
                name = os.path.relpath(path, root).replace(os.sep, "/")
                large = about.st_size > VOCABULARY and not name.endswith(".py")
                found.append((name, b"%d" % about.st_size if large else Path(path).read_bytes()))
                if len(found) > LIMIT:
                    raise NotCacheable(reasons.TOO_MANY_SOURCES)
    except OSError as error:
        raise NotCacheable(reasons.NO_SOURCE) from error
    return digest(sorted(found))


def _files(path: str, endings: tuple[str, ...]) -> Iterator[str]:
    if os.path.isfile(path):
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if name.endswith(endings))


def source_of(module: str) -> str:
    """The identity of a loaded module's code. Raises NotCacheable if it has none."""
    whose = origin_of_module(module)
    if whose == "comfyui":
        return comfyui_digest()
    if whose == "installed":
        return version_of(module)
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        raise NotCacheable(reasons.NO_SOURCE)
    return pack_digest(file)


@lru_cache(maxsize=256)
def version_of(module: str) -> str:
    """The version of the installed package that a module belongs to. Raises NotCacheable where it has none."""
    root = module.partition(".")[0]
    if root in ("builtins", *sys.stdlib_module_names):
        return sys.version
    version: Any = getattr(sys.modules.get(root), "__version__", None)
    if isinstance(version, str):
        return str(version)
    try:
        return importlib.metadata.version(root)
    except importlib.metadata.PackageNotFoundError:
        file = getattr(sys.modules.get(module), "__file__", None)
        if not file or not file.endswith(".py"):
            raise NotCacheable(reasons.NO_VERSION) from None
        return pack_digest(file)


@lru_cache(maxsize=1)
def versions() -> list[str]:
    """Of ComfyUI, torch, its libraries and the packages of KERNELS that are installed."""
    import torch

    told = [str(import_module("comfyui_version").__version__), str(torch.__version__)]
    told += [str(torch.version.cuda), str(torch.version.hip), str(torch.backends.cudnn.version())]
    for name in KERNELS:
        try:
            told.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return told
