"""Tokens chosen in the worker: the same as the model chooses, the same for every number of workers, and few bytes."""

import dataclasses

import pytest
import torch
from builders import CLIPS, tiny_config
from transformers import default_data_collator

from transformers_lvmae import LVMAEClassificationArguments, LVMAEClassificationTrainer, LVMAEForVideoClassification
from transformers_lvmae.data import (
    ByteVideoClips,
    ChosenVideoClips,
    ClipAugmentation,
    VideoReading,
    load_video_dataset,
    processor_for,
)


@pytest.fixture(scope="module")
def rows():
    return load_video_dataset(CLIPS, label_column="label")["train"].select(range(6))


def build(selection="learned", **fields):
    torch.manual_seed(0)
    fields = {
        "token_keep_ratio": 0.25,
        "scorer_patch_size": 4,
        "scorer_is_trained": True,
        "tube_drop_ratio": 0.0,
        "num_labels": 8,
        **fields,
    }
    return LVMAEForVideoClassification(tiny_config(token_selection=selection, **fields)).eval()


def chosen_clips(model, rows, **options):
    selector = model.lvmae.token_selector
    return ChosenVideoClips(rows, processor_for(model.config), 8, label_column="label", selector=selector, **options)


@pytest.mark.parametrize("selection", ["learned", "motion", "everest", "random", "uniform"])
def test_the_worker_chooses_what_the_model_would(rows, selection, tmp_path):
    """With other means than ImageNet's, RandAugment, random erasing and two clips a video."""
    model = build(selection, image_mean=(0.3, 0.4, 0.5), image_std=(0.3, 0.2, 0.3))
    options = {
        "training": True,
        "augmentation": ClipAugmentation(0.5, (), True, 2, 7, 0.5),
        "reading": VideoReading(num_clips=2),
    }
    chosen = chosen_clips(model, rows, **options)
    whole = ByteVideoClips(rows, chosen.processor, 8, label_column="label", **options)
    chosen.selector.eval()  # draws of training differ
    args = LVMAEClassificationArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = LVMAEClassificationTrainer(model, args, processing_class=chosen.processor)
    batches = [default_data_collator(clips.__getitems__(list(range(6)))) for clips in (chosen, whole)]
    tubelets, clips = (trainer._prepare_inputs(dict(batch)) for batch in batches)
    assert batches[0]["visible_tubelets"].dtype == torch.uint8
    assert batches[0]["visible_tubelets"].numel() * 4 == batches[1]["pixel_values_videos"].numel()
    assert batches[0]["erasing_noise"].isfinite().any()
    assert set(tubelets) == {"labels", "visible_tubelets", "bool_masked_pos"}
    assert torch.equal(~tubelets["bool_masked_pos"], model.lvmae.token_selector(clips["pixel_values_videos"]))
    with torch.no_grad():
        torch.testing.assert_close(model(**tubelets), model(**clips))


def test_draws_come_from_the_seed_the_epoch_and_the_row(rows):
    model = build("random", tube_drop_ratio=0.5)
    clips, again = (chosen_clips(model, rows, training=True) for _ in range(2))
    items = clips.__getitems__([0, 1, 2])
    kept = [~item["bool_masked_pos"] for item in items]
    assert [mask.sum().item() for mask in kept] == [8, 8, 8]  # a quarter of the half
    assert all(mask.view(4, 16).any(0).sum() <= 8 for mask in kept)
    assert not torch.equal(kept[0], kept[1])
    torch.rand(5)
    assert torch.equal(again[2]["bool_masked_pos"], items[2]["bool_masked_pos"])
    again.set_epoch(1)
    assert not torch.equal(again[2]["bool_masked_pos"], items[2]["bool_masked_pos"])
    fixed = chosen_clips(model, rows)
    fixed.set_epoch(1)
    expected = model.lvmae.token_selector(torch.zeros(1, 8, 3, 32, 32))[0]
    assert torch.equal(~fixed[0]["bool_masked_pos"], expected)
    assert model.lvmae.token_selector.training is False


def test_a_video_that_cannot_be_read_keeps_its_place_in_evaluation(rows):
    broken = [{"video": "nowhere.mp4", "label": 0}]
    clips = chosen_clips(build(), broken, reading=VideoReading(on_error="skip", max_broken_share=1.0))
    item = clips[0]
    assert item["is_readable"] is False
    assert item["visible_tubelets"].shape == (16, 2, 3, 8, 8)


def test_what_cannot_be_combined(rows, tmp_path):
    model = build()
    args = LVMAEClassificationArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", mixup_alpha=0.8)
    clips = chosen_clips(model, rows, training=True)
    trainer = LVMAEClassificationTrainer(model.train(), args, train_dataset=clips, processing_class=clips.processor)
    batch = trainer._prepare_inputs(default_data_collator(clips.__getitems__([0, 1])))
    with pytest.raises(ValueError, match="Got visible_tubelets with mixup_alpha"):
        trainer.compute_loss(model, batch)
    smoothing = dataclasses.replace(args, mixup_alpha=0.0, label_smoothing_factor=0.1)
    trainer = LVMAEClassificationTrainer(model, smoothing, train_dataset=clips, processing_class=clips.processor)
    assert trainer.compute_loss(model, batch).isfinite()
    other = processor_for(model.config, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"image_mean and image_std \[\[0.5, 0.5, 0.5\]"):
        LVMAEClassificationTrainer(model, smoothing, processing_class=other)
