"""What the demo makes of its runs: figures, compare.png and flip.webp."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.fixture(scope="module", autouse=True)
def demo_folder():
    sys.path.insert(0, str(DEMO))
    yield
    sys.path.remove(str(DEMO))


def shot(preset, pixels, steps, computed, seconds):
    from results import Pair, Shot

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    pair = Pair("a red apple on a blue background", 1)
    return Shot(preset, pair, file.getvalue(), seconds, 1, steps, computed, steps - computed)


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 200, (64, 64, 3), dtype=np.uint8)


def test_figures_are_against_the_run_without_a_cache(pixels):
    from results import MAX_PSNR_DB, summarise

    baseline = [shot(None, pixels, 20, 20, 2.0)] * 2
    cached = {"Same": [shot("Same", pixels, 20, 10, 1.0)] * 2, "Other": [shot("Other", pixels + 25, 20, 5, 0.5)] * 2}
    (same, other), details = summarise(baseline, cached)
    assert (same.steps, same.computed, same.speedup, same.kept) == (20, 10, 2.0, 1.0)
    assert same.psnr_db == MAX_PSNR_DB
    assert same.ssim == 1
    assert same.lpips in (None, 0.0)  # None without the measures, which only the demo and the benches are given
    assert other.psnr_db == pytest.approx(20 * np.log10(255 / 25), abs=1e-3)
    assert [d["steps"] for d in details] == [20] * 4


def test_the_table_names_the_run_without_a_cache_once_for_each_number_of_steps(pixels):
    from results import summarise, table

    lines = []
    for steps in (50, 20):
        cached = {name: [shot(name, pixels, steps, 10, 1.0)] for name in ("A", "B")}
        lines += summarise([shot(None, pixels, steps, steps, 2.0)], cached)[0]
    first = [row.split()[0] for row in table(lines).split("\n")[1:]]
    assert first == ["Without", "A", "B", "Without", "A", "B"]


def test_pictures_for_people(pixels, tmp_path):
    from results import summarise
    from sheet import AMPLIFIED, DIFFERENCE, TILE, draw, flip

    baseline, cached = [shot(None, pixels, 20, 20, 2.0)], {"Balanced": [shot("Balanced", pixels + 10, 20, 10, 1.0)]}
    lines, _ = summarise(baseline, cached)
    page = np.asarray(draw(baseline, cached, lines, "footer"))
    gray = (page == 10 * AMPLIFIED).all(-1)  # the difference, amplified
    assert gray.sum() >= (DIFFERENCE - 2) ** 2
    flip(baseline, cached, lines, tmp_path / "flip.webp")
    with Image.open(tmp_path / "flip.webp") as animation:
        assert getattr(animation, "n_frames", 1) == 2
        assert animation.width == TILE


def test_the_stand_ins_that_lpips_is_imported_with_are_gone_afterwards(tmp_path, monkeypatch):
    """matplotlib, which draws the benches' plots, takes any module IPython for the real one."""
    import perceptual

    package = tmp_path / "stlpips_pytorch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "stlpips.py").write_text(
        "from IPython import embed\nfrom torchsummary import summary\ndef LPIPS(**settings): return settings\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("IPython", "torchsummary", "stlpips_pytorch", "stlpips_pytorch.stlpips"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = {*sys.modules}
    assert perceptual._network.__wrapped__()["variant"] == "shift_tolerant"
    assert not {"IPython", "torchsummary"} & ({*sys.modules} - before)
    for name in {*sys.modules} - before:
        monkeypatch.delitem(sys.modules, name)
