"""The templates, as files: what the front end draws of them. They are opened and run in tests/browser and tests/comfy/memo."""

import re
from itertools import combinations

import pytest
from PIL import Image

from skipstone.tests.drawings import FOLDER, NAMES, apart, box, drawn, inside

NOTE = "MarkdownNote"

named = pytest.mark.parametrize("name", NAMES)


@named
def test_its_links_join_what_they_say(name):
    graph = drawn(name)
    nodes = {n["id"]: n for n in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    assert len(nodes) == len(graph["nodes"]) and max(nodes) == graph["last_node_id"]
    assert len(links) == len(graph["links"]) and max(links) == graph["last_link_id"]
    for link, source, slot, target, place, kind in links.values():
        out, into = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in out["links"] and into["link"] == link and kind == out["type"]
        assert into["type"] in (kind, "*")
    ends = [i["link"] for n in nodes.values() for i in n["inputs"] if i["link"] is not None]
    begins = [link for n in nodes.values() for o in n["outputs"] for link in o["links"] or ()]
    assert sorted(ends) == sorted(begins) == sorted(links)


@named
def test_it_is_drawn_from_left_to_right_with_nothing_on_top_of_anything(name):
    graph = drawn(name)
    nodes = {n["id"]: n for n in graph["nodes"]}
    for one, other in combinations(map(box, nodes.values()), 2):
        assert apart(one, other), (one, other)
    for _, source, _, target, _, _ in graph["links"]:
        assert nodes[source]["pos"][0] <= nodes[target]["pos"][0]
    groups = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in graph["groups"])]
    for node in nodes.values():
        assert all(inside(box(node), group) or apart(box(node), group) for group in groups), node["type"]
    assert sum(n["type"] == NOTE for n in nodes.values()) == 1, "a note that explains"


@named
def test_a_model_that_is_missing_can_be_downloaded(name):
    """The front end offers it where the node says from where: of these hosts, and in these formats only."""
    for node in drawn(name)["nodes"]:
        files = {v for v in node.get("widgets_values") or () if str(v).endswith((".safetensors", ".pt", ".sft"))}
        offered = node["properties"].get("models", [])
        assert {model["name"] for model in offered} == files, node["type"]
        for model in offered:
            assert re.fullmatch(r"https://huggingface\.co/[\w./-]+/" + re.escape(model["name"]), model["url"])
            assert model["directory"] in ("diffusion_models", "text_encoders", "vae", "checkpoints")


@named
def test_it_is_legible_when_it_is_opened(name):
    """The front end fits it into three quarters of the window; below 60 % the classic canvas draws no text. Window: 1600 x 1000."""
    boxes = [box(node) for node in drawn(name)["nodes"]]
    width = max(b[2] for b in boxes) - min(b[0] for b in boxes)
    height = max(b[3] for b in boxes) - min(b[1] for b in boxes)
    assert min(0.75 * 1600 / width, 0.75 * 1000 / height) > 0.6


@named
def test_its_thumbnail_is_a_picture(name):
    with Image.open(FOLDER / f"{name}.jpg") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 512))


def test_no_two_have_one_id():
    ids = [drawn(name)["id"] for name in NAMES]
    assert ids and len({*ids}) == len(ids)
