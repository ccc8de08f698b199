# ruff: noqa: RUF001 - Chinese has its own colon and comma
"""What the help pages and the locales say that records know: inputs, presets, models, what was measured, and all English texts.

    make help-pages     write them anew

In web/docs/<NodeId>.md, and in Chinese in web/docs/<NodeId>/zh.md, what stands between `<!-- inputs -->` and `<!-- /inputs -->` (and so
on: BLOCKS) is written here; the rest is by hand. locales/en is written from the nodes' schemas and from web/js, and
locales/zh from it by tools/chinese.json: there every English text has its Chinese one. A text that was changed has none there until it is
translated anew; the front end shows the English one meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

if os.environ["COMFYUI_PATH"] not in sys.path:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

from skipstone.core.step.clock import Grid  # noqa: E402
from skipstone.core.step.published.coefficients import MAGCACHE, TEACACHE, rows  # noqa: E402
from skipstone.core.texts import Text  # noqa: E402
from skipstone.nodes import GROUPS, routes  # noqa: E402, F401 - the routes have Texts too
from skipstone.nodes.meancache import CURVES  # noqa: E402
from skipstone.patch.families import FAMILIES  # noqa: E402

PACK = Path(__file__).resolve().parent.parent
DOCS, LOCALES, SCRIPTS = PACK / "web" / "docs", PACK / "locales", PACK / "web" / "js"
BENCHMARKS, CHINESE = PACK / "docs" / "benchmarks.md", PACK / "tools" / "chinese.json"
Texts = dict[str, Any]
"""A node's display_name, description, inputs and outputs, as in ComfyUI's nodeDefs.json."""

# what they offer depends on what is installed
VARIES = {("SkipstoneCompileModel", "backend"), ("SkipstoneCompileModel", "compiler")}
MANY = 8  # options beyond which they are not listed
NO_LIMIT = 1000
LENGTHS = (50, 20, 12, 8)  # of runs
PUBLISHED = {"SkipstoneTeaCache": TEACACHE, "SkipstoneMagCache": MAGCACHE}
MODULATED = {"SkipstoneTeaCache"}  # what looks at the first block's modulated input, and may leave that block out
PLAIN = "plain sampling with B steps"
# rows of the table "Methods that work with every model" of docs/benchmarks.md
MEASURED = {
    "SkipstoneAuto": ("MeanCache, calibrated",),
    "SkipstoneMeanCache": ("MeanCache, default costs", "MeanCache, calibrated"),
    "SkipstoneEasyCache": ("ComfyUI's EasyCache", "Skipstone EasyCache"),
    "SkipstoneUCache": ("UCache",),
    "SkipstoneSpectrum": ("Spectrum",),
    "SkipstoneTaylorSeer": ("TaylorSeer",),
}


@dataclass(frozen=True)
class Words:
    """The tables' texts in one language."""

    on: str
    off: str
    upto: str  # of two numbers
    least: str  # of one
    others: str
    only: str  # of an input and its values
    custom: str
    entry: str  # of name, default and range, meaning
    preset: str
    all: str
    comma: str
    steps: str
    computed: str
    plain: str
    model: str
    default: str  # costs
    calibrated: str
    works: str
    published: str


WORDS = {
    "en": Words(
        on="on",
        off="off",
        upto="{} to {}",
        least="from {}",
        others="or {}",
        only=" Only with {} {}.",
        custom="What begins with *Custom* counts only with the preset Custom.",
        entry="- **{}**{}: {}",
        preset="preset",
        all="The same in all: {}.",
        comma=", ",
        steps="of {} steps",
        computed="computed",
        plain="plain sampling",
        model="model",
        default="default costs",
        calibrated="calibrated",
        works="Works on {}.",
        published="Published numbers are used for {}. For every other model the first run is a calibration run without skips.",
    ),
    "zh": Words(
        on="开",
        off="关",
        upto="{} 到 {}",
        least="不小于 {}",
        others="可选 {}",
        only="仅当 {} 为 {} 时有意义。",
        custom="以“自定义”开头的参数只在预设为 Custom 时生效。",
        entry="- **{}**{}：{}",
        preset="预设",
        all="各预设相同：{}。",
        comma="、",
        steps="共 {} 步",
        computed="计算的步数",
        plain="普通采样",
        model="模型",
        default="默认代价",
        calibrated="已校准",
        works="支持的模型：{}。",
        published="以下模型使用公开的数值：{}。其他模型的第一次运行是不跳步的校准运行。",
    ),
}


@cache
def schemas() -> list[Any]:
    """The schemas of all nodes, in the pack's order."""
    return [node.GET_SCHEMA() for group in GROUPS for node in import_module(f"skipstone.nodes.{group}").NODES]


# the locales


@cache
def english() -> dict[str, Texts]:
    """locales/en, by file name."""
    nodes = {s.node_id: _texts(s) for s in schemas()}
    commands = {name.replace(".", "_"): {"label": label} for name, label in _front_end()["commands"].items()}
    return {"main": _main(), "nodeDefs": nodes, "settings": _settings(), "commands": commands}


def _texts(schema: Any) -> Texts:
    inputs = {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs}
    # the front end has names of its own for the others: those of their types
    named = {str(n): _output(o) for n, o in enumerate(schema.outputs) if o.display_name not in (None, o.io_type)}
    outputs = {"outputs": named} if named else {}
    return {"display_name": schema.display_name, "description": schema.description, "inputs": inputs, **outputs}


def _output(output: Any) -> dict[str, str]:
    tooltip = {"tooltip": output.tooltip} if output.tooltip else {}
    return {"name": output.display_name, **tooltip}


def _main() -> Texts:
    # schemas() imports the nodes, and with them every Text
    parts = dict.fromkeys(part for s in schemas() for part in s.category.split("/"))
    categories = dict.fromkeys(part for s in settings() for part in s["category"])
    own = {key: texts for key, texts in _front_end().items() if key != "commands"}
    return {
        "nodeCategories": {p: p for p in parts},
        "settingsCategories": {c: c for c in categories},
        "skipstone": {**own, "messages": {key: Text.known[key] for key in sorted(Text.known)}},
    }


@cache
def _front_end() -> Texts:
    """What web/js/texts.js says: a table of plain strings, JSON but for its keys and last commas."""
    found = re.search(
        r"^const ENGLISH = (\{.*?^\})$", (SCRIPTS / "texts.js").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    quoted = re.sub(r"^(\s*)(\w+):", r'\1"\2":', found[1], flags=re.MULTILINE)
    texts: Texts = json.loads(re.sub(r",(\s*\})", r"\1", quoted))
    return texts


def _settings() -> Texts:
    """By their ids, which have _ for a dot there."""
    texts = {
        s["id"].replace(".", "_"): {k: s[k] for k in ("name", "tooltip", "options") if s.get(k)} for s in settings()
    }
    return {key: texts[key] for key in texts if texts[key]}


def settings() -> list[dict[str, Any]]:
    """The settings that web/js registers, read from its source: id, name, tooltip, category."""
    return [s for file in sorted(SCRIPTS.glob("*.js")) for s in _settings_of(file.read_text("utf-8"))]


STRING = r'(?:"(?:[^"\\]|\\.)*"|`[^`]*`)'
TEXT = rf"{STRING}(?:\s*\+\s*{STRING})*"


def _settings_of(script: str) -> Iterator[dict[str, Any]]:
    known = {name: _said(text, {}) for name, text in re.findall(rf"^const (\w+) = ({STRING})$", script, re.MULTILINE)}
    for found in re.finditer(r'\bid: "(Skipstone\.[\w.]+)",(.*?)\n  }', script, re.DOTALL):
        said: Texts = {key: _said(text, known) for key, text in re.findall(rf"\b(name|tooltip):\s*({TEXT})", found[2])}
        options = [json.loads(text) for text in re.findall(r'\btext: ("[^"]*")', found[2])]
        if options:
            said["options"] = {text: text for text in options}
        group = re.search(r"\bgroup: (\w+)", found[2])
        yield {"id": found[1], **said, "category": ["Skipstone", *([known[group[1]]] if group else [])]}


def _said(script: str, known: dict[str, str]) -> str:
    """The value of JavaScript string literals, joined by +, with a template's constants filled in."""
    parts = re.findall(STRING, script)
    plain = (json.loads(part) if part[0] == '"' else part[1:-1] for part in parts)
    return re.sub(r"\$\{(\w+)\}", lambda m: known[m[1]], "".join(plain))


@cache
def chinese() -> dict[str, Texts]:
    """locales/zh, by file name, without what is not translated."""
    known = json.loads(CHINESE.read_text("utf-8"))
    return {name: _translated(texts, known) for name, texts in english().items()}


def _translated(texts: Texts, known: dict[str, str]) -> Texts:
    found = {
        key: _translated(text, known) if isinstance(text, dict) else known.get(text) for key, text in texts.items()
    }
    return {key: text for key, text in found.items() if text}


def leaves(texts: Texts, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text, with where it stands."""
    for key, text in texts.items():
        if isinstance(text, dict):
            yield from leaves(text, (*at, key))
        else:
            yield (*at, key), text


LANGUAGES: dict[str, Callable[[], dict[str, Texts]]] = {"en": english, "zh": chinese}


# the pages


def texts_of(node: str, language: str) -> Texts:
    """A node's texts; what is not translated is in English, as the front end has it."""
    return _over(english()["nodeDefs"][node], LANGUAGES[language]()["nodeDefs"].get(node, {}))


def _over(texts: Texts, others: Texts) -> Texts:
    return {
        key: _over(text, others.get(key, {})) if isinstance(text, dict) else others.get(key, text)
        for key, text in texts.items()
    }


def pages() -> Iterator[tuple[Path, str, str]]:
    """Existing pages: (file, node id, language)."""
    for file in sorted(DOCS.rglob("*.md")):
        own = file.parent == DOCS
        yield file, file.stem if own else file.parent.name, "en" if own else file.stem


def rewritten(page: str, schema: Any, language: str) -> str:
    """The page with its blocks as they are now. Raises ValueError for one that does not end, or that is none of BLOCKS."""
    texts = texts_of(schema.node_id, language)
    for name in re.findall(r"<!-- ([a-z]+) -->", page):
        if name not in BLOCKS:
            raise ValueError(f"{schema.node_id}: there is no block {name}, but {', '.join(BLOCKS)}")
        before, _, rest = page.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise ValueError(f"{schema.node_id}: <!-- {name} --> has no <!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n{BLOCKS[name](schema, WORDS[language], texts)}\n{end}{after}"
    return page


def inputs(schema: Any, words: Words, texts: Texts) -> str:
    """A list, one line an input."""
    lines = []
    for one in schema.inputs:
        told = texts["inputs"][one.id]
        name = one.id if told["name"] == one.id else f"{told['name']} `{one.id}`"
        value = _value(schema, one, words)
        meaning = told["tooltip"] + _only(one, words, texts)
        lines.append(words.entry.format(name, f" ({value})" if value else "", meaning))
    if any(_record(one).get("custom") for one in schema.inputs):
        lines[:0] = [words.custom, ""]
    return "\n".join(lines)


def _record(one: Any) -> dict[str, Any]:
    """An input's options as sent to the browser."""
    return dict((one.extra_dict or {}).get("skipstone", {}))


def _value(schema: Any, one: Any, words: Words) -> str:
    """Default and range."""
    default = getattr(one, "default", None)
    if default in (None, ""):
        return ""
    parts = [_shown(default, words)]
    low, high = getattr(one, "min", None), getattr(one, "max", None)
    options = [o for o in getattr(one, "options", None) or () if o != default]
    if low is not None and high is not None:
        parts.append(words.upto.format(f"{low:g}", f"{high:g}") if high < NO_LIMIT else words.least.format(f"{low:g}"))
    elif options and len(options) <= MANY and (schema.node_id, one.id) not in VARIES:
        parts.append(words.others.format(words.comma.join(options)))
    return "; ".join(parts)


def _shown(value: Any, words: Words) -> str:
    if isinstance(value, bool):
        return words.on if value else words.off
    return f"{value:g}" if isinstance(value, int | float) else f"`{value}`"


def _only(one: Any, words: Words, texts: Texts) -> str:
    where = _record(one).get("shown", {})
    return "".join(
        words.only.format(texts["inputs"][name]["name"], words.comma.join(_shown(v, words).strip("`") for v in values))
        for name, values in where.items()
    )


def outputs(schema: Any, words: Words, texts: Texts) -> str:
    lines = []
    for n, one in enumerate(schema.outputs):
        told = texts.get("outputs", {}).get(str(n), {"name": one.io_type})
        lines.append(words.entry.format(told["name"], "", told.get("tooltip", one.io_type)))
    return "\n".join(lines)


def presets(schema: Any, words: Words, texts: Texts) -> str:
    """A table of what differs, and a line of what does not."""
    (table,) = (_record(one)["presets"] for one in schema.inputs if "presets" in _record(one))
    names = list(dict.fromkeys(name for values in table.values() for name in values))
    seen = {name: [_shown(values[name], words).strip("`") for values in table.values()] for name in names}
    differ = [name for name in names if len({*seen[name]}) > 1]
    label = {name: texts["inputs"][name]["name"] for name in names}
    body = [[preset, *(seen[name][n] for name in differ)] for n, preset in enumerate(table)]
    same = words.comma.join(f"{label[name]} {seen[name][0]}" for name in names if name not in differ)
    return _table([words.preset, *(label[name] for name in differ)], body) + "\n\n" + words.all.format(same)


def budgets(schema: Any, words: Words, texts: Texts) -> str:
    """The steps that MeanCache's presets compute."""
    body = [
        [name, *(str(curve.count(Grid((*range(steps, -1, -1),)))) for steps in LENGTHS)]
        for name, curve in CURVES.items()
    ]
    return _table([words.computed, *(words.steps.format(n) for n in LENGTHS)], body)


def models(schema: Any, words: Words, texts: Texts) -> str:
    """The families of models that a block-level method works on, and those of which it has published numbers."""
    modulated = schema.node_id in MODULATED
    there = [family.name for family in FAMILIES if not (modulated and (family.unet or family.min_prefix))]
    said = words.works.format("; ".join(there))
    if file := PUBLISHED.get(schema.node_id):
        known = dict.fromkeys(row.name.partition(",")[0] for row in rows(file) if row.network)
        said += "\n\n" + words.published.format("; ".join(known))
    return said


def measured(schema: Any, words: Words, texts: Texts) -> str:
    """The node's rows of the table in docs/benchmarks.md, beside plain sampling's."""
    lines = [
        [c.strip(" *") for c in line.strip("|").split("|")]
        for line in BENCHMARKS.read_text("utf-8").splitlines()
        if line[:1] == "|"
    ]
    head = next(line for line in lines if line[0] == "B")
    told = {line[0]: line[1:] for line in lines if len(line) == len(head)}
    at = [n for n, cell in enumerate(head[1:]) if " " in cell]  # where a model's columns begin: "Flux 25"
    levels = [cell.rpartition(" ")[2] for cell in head[1 : 1 + at[1]]]
    own = MEASURED[schema.node_id]
    # without the models and the levels that the node was not measured at
    at = [n for n in at if any(told[row][n + i] != "–" for i in range(len(levels)) for row in own)]
    there = [i for i in range(len(levels)) if any(told[row][n + i] != "–" for n in at for row in own)]
    body = [
        [f"{head[1 + n].partition(' ')[0]}, {_row(row, words)}", *(told[row][n + i] for i in there)]
        for n in at
        for row in (PLAIN, *own)
    ]
    return _table([words.model, *(levels[i] for i in there)], body)


def _row(name: str, words: Words) -> str:
    """A row of that table, as it is called here."""
    if name == PLAIN:
        return words.plain
    return name.replace("default costs", words.default).replace("calibrated", words.calibrated)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


Block = Callable[[Any, Words, Texts], str]
BLOCKS: dict[str, Block] = {
    "inputs": inputs, "outputs": outputs, "presets": presets, "budgets": budgets, "models": models, "measured": measured
}  # fmt: skip


def written(texts: Texts) -> str:
    return json.dumps(texts, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    locales = {language: made() for language, made in LANGUAGES.items()}
    for language, files in locales.items():
        for name, texts in files.items():
            file = LOCALES / language / f"{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(written(texts), "utf-8")
    known = {s.node_id: s for s in schemas()}
    for file, node, language in pages():
        file.write_text(rewritten(file.read_text("utf-8"), known[node], language), "utf-8")
    missing = {text for _, text in leaves(locales["en"])} - {*json.loads(CHINESE.read_text("utf-8"))}
    for text in sorted(missing):
        print(f"not translated, {CHINESE.relative_to(PACK)}: {text!r}")


if __name__ == "__main__":
    main()
