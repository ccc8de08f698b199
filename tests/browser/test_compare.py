"""Preset Table: one queue of the template shows two images with a slider, and a table of all presets."""

import json

from skipstone.tests.drawings import FOLDER, STAND_INS

GRAPH = FOLDER / "Compare - judge it on your model.json"
STEPS = 12


def on_demo_models(graph):
    """The template with the demo's models, small images and few steps."""
    files = {"ae.safetensors": STAND_INS["vae_name"], "flux1-dev.safetensors": STAND_INS["unet_name"]}
    for node in graph["nodes"]:
        node["properties"].pop("models", None)
        if node["type"] == "DualCLIPLoader":
            node["type"] = node["properties"]["Node name for S&R"] = "CLIPLoader"
            node["inputs"] = []
            node["widgets_values"] = ["skipstone_demo_clip.pt", "stable_diffusion", "default"]
        elif node["type"] == "EmptySD3LatentImage":
            node["widgets_values"][:2] = [128, 128]
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = STEPS
        elif node.get("widgets_values"):
            node["widgets_values"] = [files.get(value, value) for value in node["widgets_values"]]
    return graph


def test_one_queue_compares_all_presets(desk, request):
    page = desk.page
    desk.open(on_demo_models(json.loads(GRAPH.read_text("utf-8"))))
    view = page.locator(".skipstone-compare")
    view.get_by_text("Queue to compare all presets.").wait_for()
    desk.queue(300)
    rows = view.locator("tbody tr")
    rows.nth(3).wait_for()
    lines = [row.split("\t") for row in rows.all_inner_texts()]
    assert [line[0].strip() for line in lines] == ["Quality", "Balanced", "Speed", "Turbo"]
    computed = [int(line[1].split()[0]) for line in lines]
    assert computed == sorted(computed, reverse=True) and computed[-1] < STEPS
    page.wait_for_function(
        "() => [...document.querySelectorAll('.skipstone-compare img')].every((i) => i.naturalWidth === 128)"
    )

    # a row chooses the image on the right
    name, right = view.locator(".name.second"), view.locator("img:not(.left)")
    assert name.inner_text() == "Balanced"
    before = right.get_attribute("src")
    rows.nth(3).click()
    assert name.inner_text() == "Turbo" and right.get_attribute("src") != before
    assert rows.nth(3).get_attribute("aria-selected") == "true"

    # the slider follows the pointer, and the arrow keys
    slider = view.get_by_role("slider")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert 20 <= int(slider.get_attribute("aria-valuenow")) <= 30
    desk.settle()
    desk.shoot(f"compare-{request.node.callspec.id}")
    slider.press("ArrowRight")
    assert 25 <= int(slider.get_attribute("aria-valuenow")) <= 35

    # nothing is cut off
    assert view.evaluate("(e) => e.scrollHeight <= e.clientHeight + 1 && e.scrollWidth <= e.clientWidth + 1")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.get_by_role("button", name="Copy table").click()
    view.get_by_text("Copied").wait_for()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("| your model | Quality | Balanced | Speed | Turbo |")
    assert "skipstone_compare" not in json.dumps(desk.prompt())
