"""The examples of ARCHITECTURE.md: a new decoder mask, data format and target, added from outside the package."""

import re

import pytest
import torch
from builders import CLIPS, MODEL, ROOT, make_trainer, pretraining_batch
from torch import nn

from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining
from transformers_lvmae.data import load_video_dataset, processor_for, sources
from transformers_lvmae.models.configuration_lvmae import DECODER_MASKS, DecoderMask
from transformers_lvmae.models.masking import gather_tubelets, split_tubelets, topk_mask
from transformers_lvmae.models.token_scores import compact_scores, split_tubes
from transformers_lvmae.targets.builder import TargetBuilder
from transformers_lvmae.targets.cache_writing import TargetMaker
from transformers_lvmae.targets.token_scores import SCORES, TokenScore


def brightness(clips, grid_size):
    """The mean of a token's pixels."""
    return split_tubes(clips, grid_size).mean(dim=-1).flatten(1)


def test_add_a_decoder_mask(monkeypatch, tmp_path):
    monkeypatch.setitem(SCORES, "brightness", TokenScore("pixels", brightness))
    monkeypatch.setitem(DECODER_MASKS, "brightest", DecoderMask("brightness"))
    config = LVMAEConfig(**{**MODEL.to_dict(), "decoder_mask": "brightest", "target_type": "pixels"})
    trainer = make_trainer(
        "pretraining", load_video_dataset(CLIPS), tmp_path, model=LVMAEForPreTraining(config), max_steps=2
    )
    batch = pretraining_batch(trainer)
    made = trainer.target_builder(batch)
    scores = compact_scores(brightness(trainer.target_builder.scale.restore(batch["pixel_values_videos"]), (4, 4, 4)))
    threshold = scores.float().masked_fill(~made["bool_decoded_pos"], 2).amin(dim=1, keepdim=True)
    assert made["bool_decoded_pos"].sum(dim=1).tolist() == [config.token_budget] * 3
    assert (made["bool_decoded_pos"] | (scores <= threshold)).all()  # what is left out is nowhere brighter
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 2
    clips = torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    cached = TargetMaker(TargetBuilder(config, processor_for(config)), "brightness")(clips)["importance_scores"]
    assert torch.equal(topk_mask(cached.float(), 5), topk_mask(compact_scores(brightness(clips / 255, (4, 4, 4))), 5))


def test_add_a_data_format(monkeypatch, tmp_path):
    monkeypatch.setitem(sources.TABLES, ".psv", ("csv", {"sep": "|"}))
    (tmp_path / "table.psv").write_text("video|start|label\na.mp4|1.5|cut\nsub/b.mp4||stir\n")
    rows = load_video_dataset(tmp_path / "table.psv", label_column="label")["train"]
    assert [row["video"]["path"] for row in rows] == [str(tmp_path / "a.mp4"), str(tmp_path / "sub" / "b.mp4")]
    assert rows["start"] == [1.5, None]
    assert rows.features["label"].names == ["cut", "stir"]


class MeanColors(LVMAEForPreTraining):
    """Predicts the mean color of each tubelet."""

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.decoder.head = nn.Linear(config.decoder_hidden_size, config.num_channels)

    def gather_targets(self, pixel_values_videos, targets, decoded):
        tubelets = split_tubelets(pixel_values_videos, self.config.tubelet_size, self.config.patch_size)
        return gather_tubelets(tubelets, decoded).mean(dim=(2, 4, 5))


def test_add_a_target(tmp_path):
    torch.manual_seed(0)
    config = LVMAEConfig(**{**MODEL.to_dict(), "target_type": "pixels", "decoder_mask": "none"})
    arguments = {"max_steps": 60, "base_learning_rate": None, "learning_rate": 5e-3, "training": False, "num_clips": 4}
    trainer = make_trainer("pretraining", load_video_dataset(CLIPS), tmp_path, model=MeanColors(config), **arguments)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    batch = pretraining_batch(trainer)
    colors = batch["pixel_values_videos"].view(3, 4, 2, 3, 4, 8, 4, 8).mean(dim=(2, 5, 7)).permute(0, 1, 3, 4, 2)
    positions = torch.arange(64).expand(3, 64)
    torch.testing.assert_close(
        trainer.model.gather_targets(batch["pixel_values_videos"], None, positions), colors.flatten(1, 3)
    )


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:src|tests|studies|scripts)/[\w./]+)`", (ROOT / "ARCHITECTURE.md").read_text())
)
def test_files_that_the_page_names_exist(path):
    assert (ROOT / path).exists()
