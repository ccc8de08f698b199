"""PSNR and SSIM against scikit-image, what can be compared with what, and the picture of it."""

import json
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skipstone.core.images.compare import IDENTICAL, compared, psnr_of, ssim
from skipstone.core.images.comparison_image import ROWS, amplification, drawn, shown


def picture(seed=0, height=48, width=64, channels=3, batch=1):
    """Smooth shapes with some grain, as pictures have."""
    random = torch.Generator().manual_seed(seed)
    rough = torch.rand(batch, channels, 6, 8, generator=random)
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth + 0.05 * torch.rand(smooth.shape, generator=random)).clamp(0, 1).movedim(1, -1)


def grainy(pixels, amount, seed=7):
    return (pixels + amount * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.mark.parametrize("amount", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(48, 64, 3), (11, 11, 3), (33, 90, 1), (12, 200, 3)])
def test_the_numbers_are_those_of_scikit_image(shape, amount):
    height, width, channels = shape
    left = picture(1, height, width, channels)
    right = grainy(left, amount)
    found = compared(left, right)
    a, b = (t[0].double().numpy() for t in (left, right))
    truth = structural_similarity(
        a, b, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert found.ssim == pytest.approx(truth, abs=1e-4)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-4)


def test_ssim_of_black_and_white():
    """By hand: means 0 and 1 and no variance leave C1 / (1 + C1)."""
    assert ssim(torch.zeros(16, 16, 3), torch.ones(16, 16, 3)) == pytest.approx(1e-4 / (1 + 1e-4))


@pytest.mark.parametrize("size", [(1, 1), (4, 30), (10, 10)])
def test_pictures_smaller_than_the_window(size):
    left = picture(1, *size)
    assert 0 < compared(left, grainy(left, 0.05)).ssim < 1
    assert compared(left, left).ssim == 1


def test_identical_pictures_have_numbers_that_json_and_other_nodes_can_hold():
    found = compared(picture(1, batch=2), picture(1, batch=2))
    assert (found.psnr, found.ssim, found.identical) == (IDENTICAL, 1.0, True)
    assert json.loads(json.dumps([found.psnr, found.ssim], allow_nan=False)) == [IDENTICAL, 1.0]
    assert "identical" in found.text()


def test_no_real_difference_is_taken_for_none():
    left = torch.full((1, 1024, 1024, 3), 0.5)
    right = left.clone()
    right[0, 0, 0, 0] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    found = compared(left, right)
    assert not found.identical
    assert "identical" not in found.text()


def test_a_batch_is_judged_by_all_its_pairs():
    left = picture(1, batch=3)
    right = torch.cat([left[:1], grainy(left[1:2], 0.01), grainy(left[2:], 0.1)])
    found = compared(left, right)
    assert found.psnr == pytest.approx(psnr_of(float((left.double() - right.double()).square().mean())))
    assert found.ssim == pytest.approx(sum(compared(left[i : i + 1], right[i : i + 1]).ssim for i in range(3)) / 3)
    assert math.isfinite(found.psnr) and found.psnr < IDENTICAL
    assert [line.split(":")[0] for line in found.text().splitlines()] == ["3 pairs", "1", "2", "3"]


@pytest.mark.parametrize("swapped", [False, True])
def test_one_picture_is_compared_with_each_of_many(swapped):
    one, many = picture(1), picture(2, batch=4)
    found = compared(*((many, one) if swapped else (one, many)))
    assert len(found.pairs) == 4
    assert found.pairs[2].ssim == pytest.approx(compared(one, many[2:3]).ssim)


def test_alpha_is_left_out_and_grey_is_three_equal_channels():
    left, right = picture(1), grainy(picture(1), 0.1)
    alpha = torch.cat([right, torch.rand(1, 48, 64, 1)], -1)
    assert compared(left, alpha).psnr == compared(left, right).psnr
    grey = picture(3, channels=1)
    assert compared(grey, left).psnr == compared(grey.expand(1, 48, 64, 3), left).psnr


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (picture(), picture(height=50), "two sizes, 64 x 48 and 64 x 50"),
        (picture(batch=2), picture(batch=3), "left has 2 pictures and right 3"),
        (picture()[0], picture(), "left takes an IMAGE"),
        (picture(), {"samples": 1}, "right takes an IMAGE.* not dict"),
        (picture(), picture(channels=2), "right takes an IMAGE"),
        (picture(), picture() * math.nan, "right has pixels that are no numbers"),
    ],
)
def test_what_cannot_be_compared_is_said(left, right, said):
    with pytest.raises(ValueError, match=said):
        compared(left, right)


def test_the_given_pictures_are_not_written_to():
    left, right = picture(1), picture(2)
    kept = left.clone(), right.clone()
    found = compared(left, right)
    drawn(found, amplification(found))
    assert torch.equal(left, kept[0]) and torch.equal(right, kept[1])


@pytest.mark.parametrize("amount", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_difference_is_amplified_until_it_can_be_seen_and_no_further(amount):
    left = torch.full((1, 64, 64, 3), 0.5)
    found = compared(left, left + amount * (torch.rand(left.shape) - 0.5))
    reach = amplification(found) * found.peak
    assert 0.35 < reach <= 1


def test_three_pictures_are_on_the_sheet():
    """Left, right and their difference, of flat colours that can be found again."""
    left, right = torch.zeros(1, 64, 64, 3), torch.zeros(1, 64, 64, 3)
    left[..., 0], right[..., 0], right[..., 2] = 0.8, 0.8, 0.2
    found = compared(left, right)
    pixels = np.asarray(drawn(found, 2.0)).reshape(-1, 3)
    assert {(204, 0, 0), (204, 0, 51), (0, 0, 102)} <= {tuple(map(int, c)) for c in np.unique(pixels, axis=0)}


def test_a_sheet_of_many_pictures_is_no_longer_than_people_can_read():
    found = compared(picture(1), picture(2, batch=81))
    assert len(shown(found.pairs)) == ROWS
    assert (shown(found.pairs)[0], shown(found.pairs)[-1]) == (0, 80)
    small = compared(picture(1), picture(2, batch=ROWS))
    assert drawn(found, 1.0).size == drawn(small, 1.0).size


def test_a_name_of_any_length_stays_on_the_sheet():
    found = compared(picture(1), picture(2))
    assert drawn(found, 1.0, ("n" * 500, "")).size == drawn(found, 1.0).size
