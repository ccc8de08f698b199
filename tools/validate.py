"""The registry's own checks, without publishing anything: `comfy node validate` and `comfy node pack` of comfy-cli.

make validate   (fetches comfy-cli into uv's cache; packs a fresh clone of what is committed, and lists what users would get)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".work" / "tools" / "bin" / "uv"


def main() -> None:
    pins = tomllib.loads((ROOT / "tools" / "pins.toml").read_text())
    comfy = [str(UV), "tool", "run", "--from", f"comfy-cli=={pins['comfy-cli']}", "comfy"]
    comfy += ["--skip-prompt", "--no-enable-telemetry"]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "skipstone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        environment = os.environ | {"HOME": folder}  # its settings are not ours to change
        for command in ("validate", "pack"):
            subprocess.run([*comfy, "node", command], check=True, cwd=clone, env=environment)
        with zipfile.ZipFile(clone / "node.zip") as archive:
            size = sum(info.file_size for info in archive.infolist())
            print("\n".join(sorted(archive.namelist())))
            print(f"{len(archive.namelist())} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"validate: exit code {error.returncode} from {' '.join(map(str, error.cmd[-2:]))}")
