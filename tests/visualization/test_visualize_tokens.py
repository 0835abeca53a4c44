"""scripts/visualize_tokens.py: kept tokens are bright, dropped tokens are dark, and both files can be read."""

import pytest
import torch
from builders import CLIPS, TOKENIZER, load_script, save_tokenizer
from PIL import Image

from transformers_lvmae import FSQMagViTModel
from transformers_lvmae.models.video_io import decode_video


script = load_script("visualize_tokens")
VIDEO = CLIPS.parent / "odd" / "carphone.mp4"


def test_panels_show_the_kept_tokens_and_what_they_give_back():
    torch.manual_seed(0)
    model, pixels = FSQMagViTModel(TOKENIZER).eval(), torch.rand(16, 3, 16, 16)
    panels = script.make_panels(model, pixels, 0.25, ["flow", "random", "motion"])
    assert list(panels)[:3] == ["video", "importance", "all tokens,\ndecoded"]
    frames = pixels.permute(0, 2, 3, 1).numpy()
    for name in ("learned", "flow (DIS)", "random", "motion"):
        shown = (panels[f"{name},\n25% kept"] == frames).all(axis=-1)
        cells = shown.reshape(8, 2, 4, 4, 4, 4)  # tokens of 2 x 4 x 4 pixels
        assert cells.all(axis=(1, 3, 5)).sum() == cells.any(axis=(1, 3, 5)).sum() == 32
    with torch.no_grad():
        tokens = model.encode(pixels[None])
        kept = torch.zeros(128, dtype=torch.bool)
        kept[tokens.importance_scores[0].topk(32).indices] = True
        kept.view(8, 16)[[0, 4]] = True
        expected = model.decode(tokens.codes * kept[:, None], (8, 4, 4))[0].clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(panels["learned,\ndecoded"]), expected.permute(0, 2, 3, 1))


def test_any_video_becomes_a_strip_and_a_film(tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    script.main([str(tokenizer), str(VIDEO), str(tmp_path / "out"), "--num_frames", "16", "--moments", "3"])
    with Image.open(tmp_path / "out" / "carphone.png") as strip:
        assert strip.height > strip.width / 2  # nine rows of three moments
    film, _ = decode_video(tmp_path / "out" / "carphone.mp4", lambda metadata: range(metadata.total_num_frames))
    assert film.shape == (16, 3, 3 * (224 + 24), 3 * 224)
    assert film[:, :, :20, 100:].float().mean() > 200  # the labels' white ground


def test_options_choose_frames_tokens_and_what_is_shown_beside(tmp_path, monkeypatch):
    seen = {}

    def make_panels(model, pixels, keep_ratio, choices):
        seen.update(pixels=pixels, keep_ratio=keep_ratio, choices=choices)
        return {"video": script.to_frames(pixels)}

    monkeypatch.setattr(script, "make_panels", make_panels)
    options = ["--num_frames", "8", "--frame_stride", "1", "--keep_ratio", "0.5", "--choices", "motion"]
    script.main([str(save_tokenizer(tmp_path)), str(VIDEO), str(tmp_path / "out"), *options])
    assert (seen["keep_ratio"], seen["choices"]) == (0.5, ["motion"])
    clips = script.VideoClips([{"video": str(VIDEO)}], script.processor_for(TOKENIZER, do_normalize=False), 8)
    neighbours = (seen["pixels"][1:] - seen["pixels"][:-1]).abs().mean()
    spread = clips[0]["pixel_values_videos"]
    assert neighbours < 0.8 * (spread[1:] - spread[:-1]).abs().mean()  # evenly over the video, frames lie farther apart


def test_clips_of_part_of_a_window_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Got 12 frames, expected a multiple of the window's 8: change"):
        script.main([str(save_tokenizer(tmp_path)), str(VIDEO), str(tmp_path / "out"), "--num_frames", "12"])
