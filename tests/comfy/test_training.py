"""The training of the demo's models: what it reads and how it goes on. The models themselves are judged by `make check`."""

from __future__ import annotations

import sys

import pytest
import torch

from .conftest import ROOT, Studio, load_demo_clip


@pytest.fixture(scope="module", autouse=True)
def training_folder():
    sys.path.insert(0, str(ROOT / "demo" / "training"))
    yield
    sys.path.remove(str(ROOT / "demo" / "training"))


def test_captions_are_read_as_comfyui_reads_them(demo):
    from objects import all_scenes
    from text import POSITIONS, embed

    scenes = all_scenes()
    every_word = [s for s in scenes if s.object == 0 or s.background == 0]
    for scene in every_word:
        given = demo.prompt(scene.caption)[0][0][0]
        assert torch.allclose(embed([scene.caption])[0], given[: POSITIONS + 1], atol=1e-3), scene.caption
        assert torch.equal(given[POSITIONS + 1 :], given[POSITIONS].expand_as(given[POSITIONS + 1 :]))  # all padding
    whole = Studio(None, load_demo_clip(layers=12)).prompt(scene.caption)[0]
    assert torch.equal(whole[0][0], given)
    assert torch.equal(whole[1]["pooled_output"], demo.prompt(scene.caption)[0][1]["pooled_output"])


def test_a_combination_is_learned_or_judged_and_never_both():
    from objects import BACKGROUNDS, OBJECTS, all_scenes, held_out_scenes, training_scenes

    held_out, learned = {*held_out_scenes(len(OBJECTS))}, {*training_scenes()}
    assert held_out.isdisjoint(learned)
    assert held_out | learned == {*all_scenes()}
    assert {s.object for s in held_out} == {s.object for s in learned} == {*range(len(OBJECTS))}
    assert {s.background for s in held_out} == {s.background for s in learned} == {*range(len(BACKGROUNDS))}


def test_the_second_expert_learns_from_the_lower_noise_alone():
    from train import BOUNDARY, flow_lesson

    share, zeros = (torch.arange(64) + 0.5) / 64, torch.zeros(64, 1, 1, 1)
    _, low, _, _ = flow_lesson(zeros, zeros, share, BOUNDARY, 0.9)
    _, whole, _, _ = flow_lesson(zeros, zeros, share, 1.0, 0.9)
    assert float(low.max()) <= BOUNDARY < float(whole.max())
    assert float(low.max()) > 0.9 * BOUNDARY


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    import train

    def tiny(name):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4))
        return model, lambda x, t, words: model(x), None

    monkeypatch.setattr(train, "pupil", tiny)
    data = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(2))

    def steps(training, which):
        for x in which:
            training.update((training.forward(x, None, None) - x.flip(-1)).pow(2).mean(), 1.0)

    whole, first, second = (train.Training("tiny", 1e-2) for _ in range(3))
    steps(whole, data)
    steps(first, data[:3])
    first.save(tmp_path / "state.pt")
    second.resume(tmp_path / "state.pt")
    steps(second, data[3:])
    assert second.step == whole.step == 6
    for a, b in ((whole.weights, second.weights), (whole.average, second.average)):
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_an_update_of_muon_has_singular_values_near_one(shape):
    from muon import orthogonal

    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(3))))
    assert float(values.min()) > 0.4 and float(values.max()) < 1.3
