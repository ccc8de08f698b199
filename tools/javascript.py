"""Check web/js: `make lint`. With --fix, mend what can be mended and format it: `make format`.

oxlint and oxfmt are on the path when tools/setup.py runs this; .oxlintrc.json and .oxfmtrc.json say what they look for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = "web/js"


def main(fix: bool) -> int:
    """The number of programs that found something."""
    lint = ["oxlint", "--deny-warnings", *(["--fix"] if fix else []), FILES]
    style = ["oxfmt", *([] if fix else ["--check"]), FILES]
    return sum(subprocess.run(command, cwd=ROOT).returncode != 0 for command in (lint, style))


if __name__ == "__main__":
    sys.exit(main(fix="--fix" in sys.argv[1:]))
