"""Which models the block-level methods work on.

    make families                  one line a class of comfy.model_base, tab-separated: the class, its block lists, how many of the
                                   block-level methods work on it, whether it is tested here at block level (yes, no), and why not
    make families ARGS=--readme    write the table of docs/families.md

The lines are told by the zoo of tiny models (tests/comfy/zoo) in the ComfyUI at COMFYUI_PATH, the table by the records alone
(patch/families): it is the same whatever ComfyUI is there.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if os.environ["COMFYUI_PATH"] not in sys.path:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import comfy.model_base  # noqa: E402

from skipstone.core.step.indicators.blocks import Modulated  # noqa: E402
from skipstone.core.step.method import Method  # noqa: E402
from skipstone.core.step.policies import PerModel, Ratios  # noqa: E402
from skipstone.core.step.published.coefficients import MAGCACHE, TEACACHE, Row, rows  # noqa: E402
from skipstone.nodes.dbcache import cachedit_of, dbcache_of  # noqa: E402
from skipstone.nodes.dicache import dicache_of  # noqa: E402
from skipstone.nodes.firstblock import firstblock_of  # noqa: E402
from skipstone.nodes.magcache import magcache_of  # noqa: E402
from skipstone.nodes.taylorseer import taylorseer_of  # noqa: E402
from skipstone.nodes.teacache import teacache_of  # noqa: E402
from skipstone.patch.blocks.resolver import block_support_of, unsupported_reason  # noqa: E402
from skipstone.patch.errors import StepCacheError  # noqa: E402
from skipstone.patch.families import FAMILIES, LEFT_OUT, Family, LeftOut, family_of  # noqa: E402
from skipstone.tests.comfy import zoo  # noqa: E402

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"

METHODS: tuple[Method, ...] = (
    firstblock_of(),
    dbcache_of(),
    cachedit_of(),
    taylorseer_of(level="blocks"),
    dicache_of(),
    teacache_of(),
    magcache_of(),
)
UNET = ("input_blocks", "middle_block", "output_blocks")

# ComfyUI's names of the kinds of model that numbers are published for: image_model, and model_type where it matters
KINDS: dict[tuple[object, object], str] = {
    ("flux", None): "comfy.ldm.flux.model:Flux",
    ("chroma", None): "comfy.ldm.chroma.model:Chroma",
    ("qwen_image", None): "comfy.ldm.qwen_image.model:QwenImageTransformer2DModel",
    ("lumina2", None): "comfy.ldm.lumina.model:NextDiT",
    ("ltxv", None): "comfy.ldm.lightricks.model:LTXVModel",
    ("hunyuan_video", None): "comfy.ldm.hunyuan_video.model:HunyuanVideo",
    ("wan2.1", None): "comfy.ldm.wan.model:WanModel",
    ("wan2.1", "t2v"): "comfy.ldm.wan.model:WanModel",
    ("wan2.1", "i2v"): "comfy.ldm.wan.model:WanModel",
    ("wan2.1", "vace"): "comfy.ldm.wan.model:VaceWanModel",
    ("mochi_preview", None): "comfy.ldm.genmo.joint_model.asymm_models_joint:AsymmDiTJoint",
    ("cosmos", None): "comfy.ldm.cosmos.model:GeneralDIT",
    ("cogvideox", None): "comfy.ldm.cogvideo.model:CogVideoXTransformer3DModel",
}


# One line a class


def bases() -> dict[str, Any]:
    """Every class of model that this ComfyUI has."""
    found = vars(comfy.model_base).items()
    return {name: c for name, c in found if inspect.isclass(c) and issubclass(c, comfy.model_base.BaseModel)}


def lines() -> Iterator[str]:
    for base in bases():
        yield "\t".join(line(base, [t for t in zoo.MODELS if t.base == base]))


def line(base: str, tiny: list[zoo.Tiny]) -> tuple[str, ...]:
    """tiny: those of the zoo that are of this class."""
    if not tiny:
        why = zoo.NO_DIFFUSION.get(base)
        reason = f"makes nothing: it {why}" if why else zoo.CANNOT.get(base, "is not in tests/comfy/zoo")
        return base, "", "0", "no", reason
    networks = [t.build().model.diffusion_model for t in tiny]
    family = family_of(networks[0])
    if not isinstance(family, Family):
        return base, "", "0", "no", family.why if isinstance(family, LeftOut) else "has no record in patch/families"
    lists = UNET if family.unet else tuple(stack.at for stack in family.stacks)
    count = sum(all(reaches(method, network) for network in networks) for method in METHODS)
    return base, ", ".join(lists), str(count), "yes", ""


def reaches(method: Method, network: Any) -> bool:
    try:
        block_support_of(method, network)
    except StepCacheError:
        return False
    return True


# The table


def table() -> str:
    """Markdown. Methods that have the same to say of every family share a column, and families of which the same is said a row."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for method in METHODS:
        columns.setdefault(tuple(cell(method, family) for family in FAMILIES), []).append(method.name)
    found: dict[tuple[str, ...], list[str]] = {}
    for i, family in enumerate(FAMILIES):
        found.setdefault(tuple(column[i] for column in columns), []).append(family.name)
    head = ["Models", *(", ".join(names) for names in columns.values())]
    several = sorted(
        found.items(), key=lambda row: len(row[1]) > 1
    )  # last the row of all that nothing special is said of
    body = [["; ".join(names), *cells] for cells, names in several]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))
    return f"{text}\n\nNot at block level: {'; '.join(r.why for r in LEFT_OUT)}."


def cell(method: Method, family: Family) -> str:
    if unsupported_reason(method, family):
        return "no"
    found = [row.name.partition(",")[0] for row in published(method) if kind_of(row) in family.classes]
    if found:
        return ", ".join(dict.fromkeys(found))
    return "calibrated" if method.requires_profile({}, None) else "yes"


def published(method: Method) -> list[Row]:
    """The models that there are numbers for, by which the method can know them."""
    policies = (p.choose({}) if isinstance(p, PerModel) else p for p in method.policies)
    file = TEACACHE if isinstance(method.indicator, Modulated) else ""
    if any(isinstance(p, Ratios) for p in policies):
        file = MAGCACHE
    return [row for row in rows(file) if row.network] if file else []


def kind_of(row: Row) -> str:
    return KINDS[row.network["image_model"], row.network.get("model_type")]


def rewritten(page: str) -> str:
    """The page with the current table. Raises ValueError where its place is not marked."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no {BEGIN} ... {END}, between which the table of families stands")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="write the table of docs/families.md")
    if parser.parse_args().readme:
        PAGE.write_text(rewritten(PAGE.read_text("utf-8")), "utf-8")
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for text in lines():
        print(text, flush=True)


if __name__ == "__main__":
    main()
