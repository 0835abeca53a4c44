"""studies/cut_videos.py: the frames and pixels of a clip, and no frame in both train and test."""

import numpy as np
import torch
from builders import CLIPS, load_script

from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.models.video_io import decode_video, write_video


script = load_script("cut_videos")


def test_clips_are_stretches_and_squares_of_the_video(tmp_path):
    """Grey levels that tell frame and third: 24 frames of 32 x 96 pixels give 4 stretches of 6 frames, 3 squares each."""
    levels = np.arange(24)[:, None] * 8 + np.arange(3)[None] * 20
    film = np.broadcast_to(levels.repeat(32, axis=1)[:, None, :, None], (24, 32, 96, 3)).astype(np.uint8)
    write_video(tmp_path / "film.mp4", film, crf=1)
    script.main(
        [str(tmp_path / "data"), str(tmp_path / "film.mp4"), "--size", "32", "--num_frames", "6", "--test_every", "2"]
    )
    rows = load_video_dataset(tmp_path / "data")
    assert {split: len(clips) for split, clips in rows.items()} == {"train": 6, "test": 6}
    for number in range(4):
        for place in range(3):
            path = tmp_path / "data" / ("train", "test")[number % 2] / f"film_{number:03d}_{place}.mp4"
            clip, _ = decode_video(path, script.whole_video)
            assert clip.shape == (6, 3, 32, 32)
            expected = torch.tensor(levels[6 * number : 6 * number + 6, place]).float()
            torch.testing.assert_close(clip.float().mean(dim=(1, 2, 3)), expected, atol=6, rtol=0)


def test_upright_videos_are_cut_from_top_to_bottom():
    frames = torch.arange(100).view(1, 1, 100, 1).expand(2, 3, 100, 40).to(torch.uint8)
    top, bottom = script.squares(frames, 40)
    assert np.array_equal(top[0, :, 0, 0], np.arange(10, 50))
    assert np.array_equal(bottom[1, :, 5, 2], np.arange(50, 90))


def test_a_video_shorter_than_a_clip_gives_none(tmp_path, capsys):
    video = next((CLIPS / "test").glob("*.mp4"))
    script.main([str(tmp_path), str(video), "--num_frames", "64"])
    assert "{'train': 0, 'test': 0}" in capsys.readouterr().out
