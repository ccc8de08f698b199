"""Recordings of the user's own models: made while they sample, kept as JSON under ComfyUI's user directory.

Gram matrices for output-level methods, block profiles for block-level ones. Of each recipe at most three files: KEY.recipe.json,
KEY.json with the average of its full runs, and KEY.partial.json with the last runs that skipped. File names are hashes: no value of a
workflow becomes part of a path.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.step.calibration.block_profile import BlockProfile
from ...core.step.calibration.costs import MOST_RUNS, Recording
from ...core.step.calibration.gram import Gram
from ...core.step.calibration.recipe import Recipe, similarity
from ...core.step.clock import Grid
from ...core.step.report import messages
from .model_fingerprint import fingerprint
from .samplers import function_of

FOLDER = ("skipstone", "calibration")
LARGEST = 40_000_000  # bytes of a file that is read
MOST_RECIPES = 256  # in the folder; the oldest are deleted
OWN_FILE = re.compile(r"[0-9a-f]{32}(\.recipe|\.partial)?\.json")  # named by Recipe.key
log = logging.getLogger(__name__)


def recipe_of(guider: Any, sampler: Any, grid: Grid, latent: Tensor, blocks: str = "") -> Recipe:
    """The recipe of a run. latent: shape (B, C, ...). blocks: see Recipe."""
    patcher = guider.model_patcher
    cfg = guidance_of(guider)
    name, known = type(patcher.model.diffusion_model).__name__, fingerprint(patcher)
    return Recipe(
        model=f"{name}:{known.weights}",
        prediction="+".join(c.__name__ for c in type(patcher.get_model_object("model_sampling")).__bases__),
        sampler=function_of(sampler) or type(sampler).__name__,
        cfg=type(guider).__name__ if cfg is None else f"{cfg:g} ({type(guider).__name__})",
        size="x".join(str(2 ** round(math.log2(n))) for n in latent.shape[2:]),
        steps=grid.steps,
        sigmas=tuple(float(f"{s:.5g}") for s in grid.sigmas),
        blocks=blocks,
        base=f"{name}:{known.base}",
    )


def guidance_of(guider: Any) -> float | None:
    """The guidance scale of a guider (comfy's CFGGuider or the like); None where it has none."""
    cfg = getattr(guider, "cfg", None)
    return float(cfg) if isinstance(cfg, int | float) else None


def folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_user_directory(), *FOLDER)


def recordings(wanted: Recipe) -> tuple[list[Recording], str]:
    """The recorded Gram matrices that tell something about a run, and why a file cannot be used ("" where all can)."""
    found, problem = [], ""
    for recipe, path in _recipes():
        if similarity(recipe, wanted) == 0:
            continue
        for name, parse, full in ((f"{path.name}.json", _one_gram, True), (f"{path.name}.partial.json", _grams, False)):
            try:
                several = _read(path.with_name(name), parse)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                problem = _unusable(name, error)
                continue
            found += [Recording(gram, recipe, full) for gram in several]
    return found, problem


def profile_for(wanted: Recipe) -> tuple[BlockProfile | None, str]:
    """The block profile of the most similar recipe of the same weights; None without one, and why a file cannot be used."""
    known = [(similarity(recipe, wanted), recipe, path) for recipe, path in _recipes() if recipe.blocks]
    known = [k for k in known if k[0] > 0 and k[1].shares_weights(wanted)]
    known.sort(key=lambda k: (-k[0], k[1].key != wanted.key, abs(math.log(k[1].steps / wanted.steps))))
    problem = ""
    for _, _, path in known:
        name = f"{path.name}.json"
        try:
            return _read(path.with_name(name), BlockProfile.from_json), problem
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problem = problem or _unusable(name, error)
    return None, problem


def _recipes() -> Iterator[tuple[Recipe, Path]]:
    """The recipes in the folder, and the paths of their files without suffixes. Foreign files are passed over."""
    for path in sorted(folder().glob("*.recipe.json")):
        try:
            yield _read(path, _recipe), path.with_name(path.name.removesuffix(".recipe.json"))
        except (OSError, ValueError):
            continue


def _recipe(text: str) -> Recipe:
    try:
        recipe = Recipe.from_data(json.loads(text))
    except RecursionError as error:
        raise ValueError("not a recipe") from error
    if recipe.steps < 1:
        raise ValueError("not a recipe")
    return recipe


def _one_gram(text: str) -> tuple[Gram, ...]:
    """The content of KEY.json."""
    return (Gram.from_json(text),)


def _grams(text: str) -> tuple[Gram, ...]:
    """The content of KEY.partial.json."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a Skipstone calibration: {error}") from None
    if not isinstance(data, list):
        raise ValueError("not a Skipstone calibration: it is no list")
    return tuple(map(Gram.from_data, data[:MOST_RUNS]))


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """A file's content. Raises FileNotFoundError, or OSError or ValueError for one that cannot be used."""
    stat = path.stat()
    if not path.is_file():
        raise ValueError("it is not a file")
    if stat.st_size > LARGEST:
        raise ValueError("it is too large")
    return _parsed(path, stat.st_mtime_ns, stat.st_size, parse)


@lru_cache(maxsize=4 * MOST_RECIPES)
def _parsed(path: Path, changed: int, size: int, parse: Callable[[str], Any]) -> Any:
    """Cached by the file's time and size."""
    return parse(path.read_text("utf-8"))


def _unusable(name: str, error: Exception) -> str:
    return messages.UNUSABLE.of(name=name, error=error)


def can_keep() -> str:
    """Why the user directory cannot be written to; "" if it can."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder()):
            return ""
    except OSError as error:
        return messages.NOT_KEPT.of(error=error)


def _partial(recipe: Recipe) -> tuple[Gram, ...]:
    try:
        found: tuple[Gram, ...] = _read(folder() / f"{recipe.key}.partial.json", _grams)
    except FileNotFoundError:
        return ()
    return found


def keep(recipe: Recipe, taught: Gram | BlockProfile) -> Gram | BlockProfile:
    """Store the average of a full run with the recipe's earlier ones, and return it."""
    name = f"{recipe.key}.json"
    try:
        earlier = _read(folder() / name, type(taught).from_json)
        taught = earlier.averaged(taught)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        log.warning("[Skipstone] the calibration %s was of another kind and was replaced", recipe.key)
    _write(recipe, name, taught.to_json())
    return taught


def keep_partial(recipe: Recipe, taught: Gram) -> int:
    """Add a run that skipped to the recipe's last MOST_RUNS. Returns how many there are.

    Raises OSError or ValueError where their file cannot be used: it is left as it is.
    """
    several = list(_partial(recipe))
    for i, other in enumerate(several):
        try:
            several[i] = other.averaged(taught)
            break
        except ValueError:
            continue
    else:
        several.append(taught)
    several = several[-MOST_RUNS:]
    _write(recipe, f"{recipe.key}.partial.json", json.dumps([gram.as_data() for gram in several]))
    return sum(gram.runs for gram in several)


def _write(recipe: Recipe, name: str, text: str) -> None:
    """Written aside and renamed: readers never see half a file."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    for target, content in ((name, text), (f"{recipe.key}.recipe.json", json.dumps(asdict(recipe)))):
        part = place / f"{target}.{os.getpid()}.part"
        part.write_text(content + "\n", "utf-8")
        part.replace(place / target)
    _forget_oldest(place)


def stored() -> tuple[int, int]:
    """What is recorded: the number of setups, and the bytes of their files."""
    files = _files()
    return sum(p.name.endswith(".recipe.json") for p in files), sum(p.stat().st_size for p in files)


def forget() -> None:
    """Delete all recordings. Foreign files in the folder are left. Raises OSError for a file that cannot be deleted."""
    for path in _files():
        path.unlink(missing_ok=True)


def _files() -> list[Path]:
    """The files that this module writes."""
    return [p for p in folder().glob("*.json") if OWN_FILE.fullmatch(p.name) and p.is_file()]


def _forget_oldest(place: Path) -> None:
    recipes = sorted(place.glob("*.recipe.json"), key=lambda p: p.stat().st_mtime_ns)
    for path in recipes[:-MOST_RECIPES]:
        for suffix in (".json", ".partial.json", ".recipe.json"):
            path.with_name(path.name.replace(".recipe.json", suffix)).unlink(missing_ok=True)
