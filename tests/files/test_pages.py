"""Help pages and locales: they agree with the nodes, and nothing lacks a text."""

from __future__ import annotations

import json
import re

import pytest

from skipstone.tools import help as helping

SCHEMAS = {schema.node_id: schema for schema in helping.schemas()}
PAGES = list(helping.pages())
ENGLISH = helping.english()
CHINESE = helping.chinese()
leaves = helping.leaves
# what a name may be in Chinese too: a proper name
NAMES = re.compile(r"[\w\s().+、。-]*")
# vue-i18n gives these a meaning of its own in a message
SPECIAL = re.compile(r"[{}@|]")
# which of our nodes somebody wants who types that
WANTED = {
    "speed up": {"SkipstoneAuto"},
    "加速": {"SkipstoneAuto"},
    "fbcache": {"SkipstoneFirstBlockCache", "SkipstoneAuto"},
    "wavespeed": {"SkipstoneFirstBlockCache", "SkipstoneAuto"},
    "teacache": {"SkipstoneTeaCache", "SkipstoneAuto"},
    "magcache": {"SkipstoneMagCache"},
    "meancache": {"SkipstoneMeanCache"},
    "easycache": {"SkipstoneEasyCache", "SkipstoneAuto"},
    "lazycache": {"SkipstoneEasyCache"},
    "cache-dit": {"SkipstoneCacheDiT", "SkipstoneDBCache", "SkipstoneAuto"},
    "taylorseer": {"SkipstoneTaylorSeer", "SkipstoneCacheDiT"},
    "torch.compile": {"SkipstoneCompileModel"},
    "vae cache": {"SkipstoneMemoVAE"},
    "psnr": {"SkipstoneCompareImages"},
    "timeline": {"SkipstoneStepReport"},
}
MAKE = "stale: make help-pages"


# pages


def test_every_node_has_a_page_and_every_page_a_node():
    assert {node for _, node, language in PAGES if language == "en"} == {*SCHEMAS}
    assert {node for _, node, _ in PAGES} <= {*SCHEMAS}
    assert {language for _, _, language in PAGES} == {"en", "zh"}


@pytest.mark.parametrize(("file", "node", "language"), PAGES, ids=lambda v: getattr(v, "stem", v))
class TestPage:
    def test_it_is_not_stale(self, file, node, language):
        page = file.read_text("utf-8")
        assert page == helping.rewritten(page, SCHEMAS[node], language), MAKE

    def test_it_names_every_input_and_every_preset(self, file, node, language):
        page = file.read_text("utf-8")
        for one in SCHEMAS[node].inputs:
            assert re.search(rf"^- \*\*(.+`)?{one.id}[`*]", page, re.MULTILINE), one.id
        if any(one.id == "preset" for one in SCHEMAS[node].inputs):
            assert "<!-- presets -->" in page

    def test_its_pictures_are_there_and_have_a_text(self, file, node, language):
        """The front end looks for them from web/docs, whatever folder the page is in."""
        for text, place in re.findall(r"!\[(.*?)\]\((.*?)\)", file.read_text("utf-8")):
            assert text and (helping.DOCS / place).is_file(), place

    def test_it_counts_the_steps_that_its_picture_shows(self, file, node, language):
        page = file.read_text("utf-8")
        for text, place in re.findall(r"!\[(.*?)\]\((.*?)\)", page):
            drawing = (helping.DOCS / place).read_text("utf-8") if place.endswith(".svg") else ""
            if found := re.search(r"(\d+) of (\d+) steps computed", drawing):
                if node != "SkipstoneStepReport":  # its picture is only one of the kind that it draws
                    assert {*found.groups()} == {*re.findall(r"\d+", text)}, f"{place}: {found[0]}"
                for counted in re.findall(r"computed (\d+) of 50|50 步中的 (\d+)", page):
                    assert found[1] in counted

    def test_its_figures_were_measured(self, file, node, language):
        """What a person wrote, not a table: it stands in docs/ as well, or beside the code that it is about."""
        pages = (*(helping.PACK / "docs").glob("*.md"), *(helping.PACK / "nodes").glob("*.py"))
        told = "".join(p.read_text("utf-8") for p in pages)
        written = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", file.read_text("utf-8"), flags=re.DOTALL)
        for sentence in re.split(r"\n\n|。|\. ", written):
            if "dB" in sentence:
                assert [n for n in re.findall(r"\d+\.\d+", sentence) if n not in told] == [], sentence

    def test_its_links_lead_somewhere(self, file, node, language):
        """A relative link would lead to the server's root: the front end leaves it as it is."""
        for place in re.findall(r"(?<!!)\[[^\]]*\]\((.*?)\)", re.sub(r"!\[.*?\]\(.*?\)", "", file.read_text("utf-8"))):
            assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|github\.com/[\w./-]+)$", place), place


def test_every_picture_is_shown():
    shown = {place for file, _, _ in PAGES for place in re.findall(r"!\[.*?\]\((.*?)\)", file.read_text("utf-8"))}
    assert {str(p.relative_to(helping.DOCS)) for p in (helping.DOCS / "img").iterdir()} == shown


def test_a_block_without_an_end_is_said():
    with pytest.raises(ValueError, match="<!-- /inputs -->"):
        helping.rewritten("<!-- inputs -->", SCHEMAS["SkipstoneAuto"], "en")


def test_an_unknown_block_is_said():
    with pytest.raises(ValueError, match="no block input, but inputs"):
        helping.rewritten("<!-- input -->", SCHEMAS["SkipstoneAuto"], "en")


# locales


@pytest.mark.parametrize("language", helping.LANGUAGES)
@pytest.mark.parametrize("name", ENGLISH)
def test_the_files_are_not_stale(name, language):
    texts = helping.LANGUAGES[language]()[name]
    assert (helping.LOCALES / language / f"{name}.json").read_text("utf-8") == helping.written(texts), MAKE


def test_chinese_has_all_that_english_has_and_no_more():
    known = json.loads(helping.CHINESE.read_text("utf-8"))
    said = {text for _, text in leaves(ENGLISH)}
    assert (said - {*known}, {*known} - said) == (set(), set()), "translate in tools/chinese.json, then make help-pages"
    assert {path for path, _ in leaves(CHINESE)} == {path for path, _ in leaves(ENGLISH)}


@pytest.mark.parametrize("name", ENGLISH)
def test_what_is_in_chinese_is_chinese(name):
    for path, text in leaves(CHINESE[name]):
        named = path[-1] not in ("tooltip", "description") and NAMES.fullmatch(text)
        frame = not re.search(r"\w", re.sub(r"{\w+}", "", text))  # what values stand in, and no word
        assert named or frame or re.search(r"[\u4e00-\u9fff]", text), (path, text)


@pytest.mark.parametrize("name", ["nodeDefs", "settings"])
def test_chinese_has_the_numbers_that_english_has(name):
    """A default or a range that was changed in the one is changed in the other."""
    chinese = dict(leaves(CHINESE[name]))
    for path, text in leaves(ENGLISH[name]):
        numbers = {*re.findall(r"\d+(?:\.\d+)?", text)}
        assert numbers <= {*re.findall(r"\d+(?:\.\d+)?", chinese[path])}, path


def test_chinese_has_the_values_that_english_has():
    chinese = dict(leaves(CHINESE["main"]))
    for path, text in leaves(ENGLISH["main"]):
        assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", chinese[path])), path


def test_every_sentence_of_the_server_is_in_the_locales():
    """Those whose module no node loads would be missing."""
    code = (
        f.read_text("utf-8") for folder in ("core", "patch", "nodes") for f in (helping.PACK / folder).rglob("*.py")
    )
    keys = {key for text in code for key in re.findall(r'\bText\(\s*"(\w+)"', text)}
    told = ENGLISH["main"]["skipstone"]["messages"]
    assert keys <= {*told}
    assert all(re.match("reason_|kind_", key) for key in {*told} - keys)


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_no_text_has_what_the_front_end_reads_as_code(texts):
    # those of web/js/texts.js are not read by it
    own = ("main", "skipstone")
    assert [(path, text) for path, text in leaves(texts) if path[:2] != own and SPECIAL.search(text)] == []


def test_every_setting_has_a_text():
    ids = {
        found
        for file in helping.SCRIPTS.glob("*.js")
        for found in re.findall(r'id: "(Skipstone\.[\w.]+)"', file.read_text())
    }
    told = {s["id"]: s for s in helping.settings()}
    for context in ids:
        if "type" not in told[context]:
            assert told[context]["name"] and told[context]["tooltip"], context


# tooltips and names to find them by


@pytest.mark.parametrize("node", SCHEMAS)
def test_every_input_says_what_it_does(node):
    schema = SCHEMAS[node]
    assert schema.description.endswith(".")
    for one in schema.inputs:
        assert one.tooltip and one.tooltip.endswith("."), one.id


@pytest.mark.parametrize("typed", WANTED)
def test_nodes_are_found_under_the_names_that_people_know(typed):
    found = {
        node
        for node, schema in SCHEMAS.items()
        if any(typed in name.lower() for name in (schema.display_name, *(schema.search_aliases or ())))
    }
    assert WANTED[typed] <= found


def test_every_node_is_found_under_the_packs_name():
    assert [node for node, schema in SCHEMAS.items() if "skipstone" not in (schema.search_aliases or ())] == []
