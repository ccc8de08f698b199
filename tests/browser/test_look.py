"""Step Report and Compare Images in a graph: the same seed without a step cache and with it, seen on the nodes themselves."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_and_what_it_cost_are_seen_on_the_nodes(desk, request):
    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    found = {n["type"]: str(n["id"]) for n in desk.saved()["nodes"]}
    cache, loader, sampler, decode = (found[k] for k in ("SkipstoneMeanCache", "UNETLoader", "KSampler", "VAEDecode"))
    report = desk.add("SkipstoneStepReport", 1180, 500)
    compare = desk.add("SkipstoneCompareImages", 1740, 500, left_name="without", right_name="Speed")
    plain = desk.add("KSampler", 800, 900, seed=5001, steps=10, cfg=3.0, scheduler="simple")
    other = desk.add("VAEDecode", 1180, 900)
    desk.evaluate(
        """([cache, sampler]) => {
            const set = (node, name, value) => { app.graph.getNodeById(node).widgets.find(w => w.name === name).value = value }
            set(cache, "preset", "Speed"); set(cache, "calibration", "default"); set(sampler, "steps", 10)
        }""",
        cache, sampler,
    )  # fmt: skip
    for into in ("positive", "negative", "latent_image"):
        source, output = desk.evaluate(
            """([sampler, into]) => {
                const node = app.graph.getNodeById(sampler), link = app.graph.links.get(node.inputs.find(i => i.name === into).link)
                return [String(link.origin_id), app.graph.getNodeById(link.origin_id).outputs[link.origin_slot].name]
            }""",
            sampler, into,
        )  # fmt: skip
        desk.connect(source, output, plain, into)
    desk.connect(loader, "MODEL", plain, "model")
    desk.connect(found["VAELoader"], "VAE", other, "vae")
    desk.connect(plain, "LATENT", other, "samples")
    desk.connect(sampler, "LATENT", report, "latent")
    desk.connect(report, "latent", decode, "samples")
    desk.connect(other, "IMAGE", compare, "left")
    desk.connect(decode, "IMAGE", compare, "right")
    before = {n["id"]: n["size"] for n in desk.saved()["nodes"]}
    desk.evaluate(
        "() => { app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [-1000, -300]; app.canvas.setDirty(true, true) }"
    )
    desk.queue()  # the classic canvas loads pictures when it draws them
    for node in (report, compare):
        desk.page.wait_for_function(
            "(id) => app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 600 || "
            "document.querySelector(`[data-node-id='${id}'] img`)?.naturalWidth > 600",
            arg=node,
        )
    desk.settle()
    desk.shoot(f"look-{request.node.callspec.id}")
    after = {n["id"]: n["size"] for n in desk.saved()["nodes"]}
    for node in (int(report), int(compare)):  # no jump: there was room
        assert after[node][0] == before[node][0] >= 500
        assert after[node][1] - before[node][1] < 40
