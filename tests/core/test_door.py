"""The pack's door opens under any directory name, the way ComfyUI opens it and without a ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The steps of ComfyUI's nodes.load_custom_node, then every module of core/, which must not need to know its own name.
OPEN = """
import importlib, importlib.util, inspect, pkgutil, sys
from pathlib import Path

for folder in sys.argv[1:]:
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py")
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)

    assert inspect.iscoroutinefunction(pack.comfy_entrypoint)
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS"), "ComfyUI would never call comfy_entrypoint"
    web = getattr(pack, "WEB_DIRECTORY", None)
    assert web is None or Path(folder, web).is_dir(), web

    core = importlib.import_module(f"{name}.core")
    for module in pkgutil.walk_packages(core.__path__, f"{core.__name__}."):
        importlib.import_module(module.name)

foreign = {m.split(".")[0] for m in sys.modules} & {"skipstone", "core", "nodes", "comfy", "comfy_api"}
assert not foreign, foreign
"""


def test_opens_under_any_directory_name(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("skipstone", "ComfyUI-Skipstone", "skip-stone.x", "skipstone 0.1.0 (copy)")]
    for folder in folders:
        folder.symlink_to(ROOT)
    # -I: no PYTHONPATH and no working directory, so an absolute import of our own is an error here as it is for users
    done = subprocess.run([sys.executable, "-I", "-c", OPEN, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
