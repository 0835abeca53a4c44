"""studies/evaluate_tokenizer.py: metrics against naive code, a whole run at tiny size, and resuming it."""

import json

import numpy as np
import pytest
import torch
from builders import CLIPS, TOKENIZER, load_script, save_tokenizer

from transformers_lvmae import FSQMagViTModel
from transformers_lvmae.data import FrameSampling, VideoClips, load_video_dataset, processor_for


script = load_script("evaluate_tokenizer")


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path)


def run(tokenizer, output, *options):
    script.main([str(tokenizer), str(CLIPS), str(output), "--max_samples", "3", *options])
    return json.loads((output / "results.json").read_text())


def test_figures_are_psnrs_of_all_and_of_moving_pixels(tokenizer):
    model = FSQMagViTModel.from_pretrained(tokenizer).eval()
    rows = load_video_dataset(CLIPS)["test"].select(range(3))
    clips = VideoClips(rows, processor_for(TOKENIZER, do_normalize=False), 8, sampling=FrameSampling(frame_stride=1))
    figures = script.judge(model, "learned", clips, batch_size=2)
    expected = {"all": [], "moving": [], "copy": []}
    for number in range(3):
        pixels = clips[number]["pixel_values_videos"]
        with torch.no_grad():
            scores = model.encode(pixels[None]).importance_scores[0]
            kept = torch.zeros(64, dtype=torch.bool)
            kept[:16] = True
            kept[16 + scores[16:].topk(round(0.15 * 64)).indices] = True
            given = model(pixels[None], bool_kept_pos=kept[None]).reconstruction[0].clamp(0, 1)
        moving = (pixels - pixels[0]).abs().amax(dim=1) > 0.1  # (T, H, W)
        errors = {"all": given - pixels, "moving": (given - pixels).movedim(1, -1)[moving]}
        errors["copy"] = (pixels[0] - pixels).movedim(1, -1)[moving]
        for name, error in errors.items():
            expected[name].append(-10 * np.log10(error.square().mean().item()))
    assert figures["all"]["15%"] == pytest.approx(np.mean(expected["all"]), abs=1e-3)
    assert figures["moving"]["15%"] == pytest.approx(np.mean(expected["moving"]), abs=1e-3)
    assert figures["moving"]["copy"] == pytest.approx(np.mean(expected["copy"]), abs=1e-3)


def test_forks_are_trained_judged_and_not_trained_again(tokenizer, tmp_path):
    output = tmp_path / "out"
    options = ("--fork_steps", "1", "--batch_size", "2", "--seeds", "2", "--selections", "learned", "motion")
    results = run(tokenizer, output, *options)
    assert set(results) == {"learned", "motion"}
    assert all(len(values) == 2 for values in results["motion"]["moving"].values())
    assert results["learned"]["all"]["15%"] != results["motion"]["all"]["15%"]
    assert results["learned"]["all"]["copy"] == results["motion"]["all"]["copy"]
    table = (output / "table.md").read_text()
    assert "| learned minus ..., moving pixels, dB | 5% |" in table
    assert (output / "psnr.png").read_bytes()[:4] == b"\x89PNG"

    forked = output / "seed_1" / "motion" / "model.safetensors"
    written = forked.stat().st_mtime_ns
    (output / "seed_0" / "motion" / "psnr.json").unlink()  # interrupted before it was judged
    assert run(tokenizer, output, *options) == results
    assert forked.stat().st_mtime_ns == written


def test_without_fork_steps_the_tokenizer_itself_is_judged(tokenizer, tmp_path):
    results = run(tokenizer, tmp_path / "out", "--fork_steps", "0", "--seeds", "1")
    assert list(results) == list(script.SELECTIONS)
    everything = [figures["all"]["100%"][0] for figures in results.values()]
    assert everything == pytest.approx([everything[0]] * len(everything), abs=1e-4)  # all tokens are all tokens
    assert not list((tmp_path / "out").rglob("model.safetensors"))


def test_intervals_are_students():
    assert script.interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 * 1 / 3**0.5)
    assert script.interval([1.0]) == 0
    results = {
        "learned": {"moving": {f"{budget:.0%}": [3.0, 5.0, 4.0] for budget in script.BUDGETS}},
        "random": {"moving": {f"{budget:.0%}": [2.0, 4.0, 3.0] for budget in script.BUDGETS}},
    }
    assert "| random | +1.00 ± 0.00 |" in script.difference_table(results, "moving")


def test_twins_say_what_moves(tokenizer):
    """Of clips whose pixels all flicker, those count that move in the same clips without flicker."""
    model = FSQMagViTModel.from_pretrained(tokenizer).eval()
    rows = load_video_dataset(CLIPS)["test"].select(range(3))
    clips = VideoClips(rows, processor_for(TOKENIZER, do_normalize=False), 8, sampling=FrameSampling(frame_stride=1))

    class Flickering(VideoClips):
        def make_item(self, row, clip):
            pixels = super().make_item(row, clip)["pixel_values_videos"]
            return {"pixel_values_videos": (0.5 * pixels + 0.4 * torch.rand(len(pixels), 1, 1, 1))}

    flickering = Flickering(rows, clips.processor, 8, sampling=FrameSampling(frame_stride=1))
    own, twins = (script.judge(model, "learned", flickering, 2, other) for other in (None, clips))
    assert own["all"] == twins["all"]
    expected = []
    for number in range(3):
        pixels, still = (source[number]["pixel_values_videos"] for source in (flickering, clips))
        moving = (still - still[0]).abs().amax(dim=1) > 0.1
        error = (pixels[:1] - pixels).movedim(1, -1)[moving]
        expected.append(-10 * np.log10(error.square().mean().item()))
    assert twins["moving"]["copy"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert twins["moving"]["copy"] != pytest.approx(own["moving"]["copy"], abs=0.1)
