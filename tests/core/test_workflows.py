"""The graphs to share, as files: what the front end draws of them. They are opened and run in tests/browser and tests/comfy/memo."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(f.stem for f in (ROOT / "workflows").glob("*.json"))
TITLE = 30  # pixels above a node
NOTE = "MarkdownNote"

named = pytest.mark.parametrize("name", NAMES)


def drawn(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    return told


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def inside(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


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
def test_its_thumbnail_is_a_picture(name):
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 512))


def test_no_two_have_one_id():
    ids = [drawn(name)["id"] for name in NAMES]
    assert ids and len({*ids}) == len(ids)
