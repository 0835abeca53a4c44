"""Pixels and scores as the models take them, against the processor and plain sorting."""

import pytest
import torch

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import processor_for
from transformers_lvmae.models.masking import gather_tubelets, split_tubelets
from transformers_lvmae.models.token_scores import compact_scores, tokenizer_view
from transformers_lvmae.targets.pixels import PixelScale


CONFIG = LVMAEConfig(image_size=32, patch_size=8, num_frames=8)


@pytest.fixture
def clip():
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)


def test_bytes_are_normalized_as_the_processor_does_bit_for_bit(clip):
    processor = processor_for(CONFIG)
    expected = processor(clip, return_tensors="pt")["pixel_values_videos"]
    scale = PixelScale(processor)
    assert torch.equal(scale.normalize(clip[None]), expected)
    assert torch.equal(scale.normalize(expected), expected)
    # The axes of tubelets end as those of a clip: gathering and normalizing may change places.
    indices = torch.tensor([[3, 9, 40]])
    tubelets = gather_tubelets(split_tubelets(clip[None], 2, 8), indices)
    assert torch.equal(scale.normalize(tubelets), gather_tubelets(split_tubelets(expected, 2, 8), indices))


@pytest.mark.parametrize(
    "options", [{}, {"do_normalize": False}, {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.1, 1.0, 2.0]}]
)
def test_restored_pixels_are_the_frames(clip, options):
    scale = PixelScale(processor_for(CONFIG, **options))
    torch.testing.assert_close(scale.restore(clip), clip / 255, atol=1e-6, rtol=0)
    torch.testing.assert_close(scale.restore(scale.normalize(clip)), clip / 255, atol=1e-6, rtol=0)
    processed = processor_for(CONFIG, **options)(clip, return_tensors="pt")["pixel_values_videos"][0]
    torch.testing.assert_close(scale.restore(processed), clip / 255, atol=1e-6, rtol=0)


def test_restored_pixels_are_clamped():
    """Bicubic resizing and color changes leave [0, 1]."""
    restored = PixelScale(processor_for(CONFIG)).restore(
        torch.tensor([-100.0, 100.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    )
    assert torch.equal(restored, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))


def test_a_smaller_view_is_the_mean_of_what_it_covers():
    """Stripes of two pixels: where only the nearest pixels counted, all of a view four times smaller would be white."""
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8).expand(1, 2, 3, 32, 32)
    assert torch.equal(tokenizer_view(stripes, 1), stripes)
    view = tokenizer_view(stripes, 0.25)
    assert view.shape == (1, 2, 3, 8, 8)
    assert (view - 0.5).abs().max() < 0.2


def test_pixels_without_a_processor_are_refused():
    with pytest.raises(ValueError, match=r"Got no processing_class, expected .*: pass LVMAEVideoProcessor"):
        PixelScale(None)


def test_compact_scores_keep_the_order_and_do_not_change_again():
    scores = torch.rand(5, 1000) * torch.tensor([1e-6, 1e-3, 1.0, 1e5, 1e30]).unsqueeze(1) - 0.3
    compact = compact_scores(scores)
    assert compact.dtype == torch.float16
    assert compact.amin(dim=1).tolist() == [0] * 5
    assert compact.amax(dim=1).tolist() == [1] * 5
    assert torch.equal(compact_scores(compact), compact)
    for row, small in zip(scores, compact.float()):
        order = row.argsort()
        assert (small[order].diff() >= 0).all()
        spread = (row.double() - row.double().min()) / (row.double().max() - row.double().min())
        torch.testing.assert_close(small.double(), spread, rtol=2**-10, atol=2**-20)


def test_still_clips_score_alike():
    assert compact_scores(torch.full((2, 9), 0.7)).tolist() == [[0.0] * 9] * 2
