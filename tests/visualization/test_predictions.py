"""The panels of a run's predictions, and their arrival in TensorBoard and Trackio."""

import io

import numpy as np
import pytest
import torch
from builders import CLIPS, MODEL, make_trainer, pretraining_batch
from PIL import Image

from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining
from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.targets.builder import ClipViews
from transformers_lvmae.visualization import predictions
from transformers_lvmae.visualization.drawing import save_rows
from transformers_lvmae.visualization.predictions import PredictionPictures, paint_pixels, prediction_panels


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


def trainer_with(splits, path, arguments=(), **fields):
    torch.manual_seed(0)
    model = LVMAEForPreTraining(LVMAEConfig(**{**MODEL.to_dict(), **fields}))
    return make_trainer("pretraining", splits, path, training=False, model=model, **dict(arguments))


def panels_of(trainer, item):
    return prediction_panels(trainer.model, trainer.target_builder, trainer.data_collator([item]))


def bright(panel, video):
    """Which tokens of a panel show the video itself, and not a darkened one: bool (N,)."""
    same = np.isclose(panel, video, atol=1e-6).all(axis=-1).reshape(4, 2, 4, 8, 4, 8)
    return torch.from_numpy(same.all(axis=(1, 3, 5)).flatten())


@pytest.mark.parametrize("kind", ["codes", "latents", "levels"])
def test_panels_show_the_masks_and_the_prediction_decoded(kind, splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, target_type=kind)
    item = trainer.train_dataset[1]
    panels = panels_of(trainer, item)
    names = [name.replace("\n", " ") for name in panels]
    assert names == [
        "video",
        "tokenizer, all tokens",
        "importance",
        "seen by the encoder",
        "reconstructed by the decoder",
        "predicted codes, decoded",
    ]
    video, whole, importance, seen, decoded, predicted = panels.values()
    made = trainer.target_builder(trainer.data_collator([item]))
    assert torch.equal(bright(seen, video), ~item["bool_masked_pos"])
    assert torch.equal(bright(decoded, video), made["bool_decoded_pos"][0])
    with torch.no_grad():
        output = trainer.model.eval()(**made)
        codes = torch.zeros(1, 64, 6)
        codes[0, made["bool_decoded_pos"][0]] = trainer.model.predicted_codes(output.logits)[0]
        expected = trainer.target_builder.tokenizer.decode(codes)[0].clamp(0, 1).permute(0, 2, 3, 1)
        tokens = ClipViews(trainer.target_builder, made["pixel_values_videos"]).tokens("codes")
    np.testing.assert_allclose(predicted, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        whole,
        trainer.target_builder.tokenizer.decode(tokens.codes)[0].clamp(0, 1).permute(0, 2, 3, 1).detach(),
        atol=1e-5,
    )
    heat = importance.reshape(4, 2, 4, 8, 4, 8, 3).mean(axis=(1, 3, 5, 6)).flatten()
    assert heat.argmax() == tokens.importance_scores[0].argmax()


def test_panels_of_pixels_and_of_a_run_without_a_tokenizer(splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, target_type="pixels", decoder_mask="motion")
    trainer.target_builder.tokenizer = None
    panels = panels_of(trainer, trainer.train_dataset[0])
    assert list(panels) == [
        "video",
        "importance",
        "seen by\nthe encoder",
        "reconstructed by\nthe decoder",
        "predicted\npixels",
    ]
    trainer = trainer_with(splits, tmp_path, decoder_mask="random")
    trainer.target_builder.tokenizer = None
    item = {**trainer.train_dataset[0], "target_codes": torch.zeros(64, 6)}
    assert list(panels_of(trainer, item)) == ["video", "seen by\nthe encoder", "reconstructed by\nthe decoder"]


def test_panels_of_pixels_show_them_in_the_clip_s_own_range(splits, tmp_path, monkeypatch):
    """Normalized pixels are restored: a perfect prediction is the clip itself."""
    trainer = trainer_with(splits, tmp_path, target_type="pixels", decoder_mask="random")
    monkeypatch.setattr(predictions, "paint_pixels", lambda clips, logits, decoded, config: clips)
    panels = panels_of(trainer, trainer.train_dataset[0])
    shown, painted = panels["reconstructed by\nthe decoder"], panels["predicted\npixels"]
    np.testing.assert_allclose(painted, shown, atol=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_paints_the_clip_itself(norm_pix_loss, splits, tmp_path):
    trainer = trainer_with(splits, tmp_path, target_type="pixels", decoder_mask="random", norm_pix_loss=norm_pix_loss)
    made = trainer.target_builder(pretraining_batch(trainer))
    clips, mask = made["pixel_values_videos"], made["bool_decoded_pos"]
    positions = mask.nonzero()[:, 1].view(3, -1)
    logits = trainer.model.gather_targets(clips, None, positions)
    torch.testing.assert_close(
        paint_pixels(clips, logits, mask, MODEL_WITH[norm_pix_loss]), clips, atol=1e-4, rtol=1e-4
    )
    other = paint_pixels(clips, logits + 1, mask, MODEL_WITH[norm_pix_loss])
    changed = (other != clips).view(3, 4, 2, 3, 4, 8, 4, 8).any(dim=(2, 3, 5, 7)).flatten(1)
    assert not (changed & ~mask).any()
    assert changed.sum() > 0.9 * mask.sum()  # a tubelet of one colour has no deviation to change by


MODEL_WITH = {norm: LVMAEConfig(**{**MODEL.to_dict(), "norm_pix_loss": norm}) for norm in (True, False)}


def logged_run(splits, path, tracker):
    arguments = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "report_to": tracker}
    trainer = trainer_with(splits, path, arguments)
    trainer.add_callback(PredictionPictures(trainer, trainer.eval_dataset))
    trainer.train()
    return trainer


def last_picture(trainer):
    """The picture of the weights at the end."""
    panels, file = panels_of(trainer, trainer.eval_dataset[0]), io.BytesIO()
    save_rows(file, panels, list(range(8)), "step 2")
    return np.asarray(Image.open(file).convert("RGB"))


def test_tensorboard_has_pictures_and_parts_of_the_loss_at_each_evaluation(splits, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = logged_run(splits, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    pictures = events.Images("eval/prediction")
    assert [event.step for event in pictures] == [1, 2]
    first, last = (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in pictures)
    assert np.array_equal(last, last_picture(trainer))
    assert not np.array_equal(first, last)
    logged = [entry["loss_channel_0"] for entry in trainer.state.log_history if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss_channel_0")] == pytest.approx(logged)


def test_trackio_has_the_pictures(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    trainer = logged_run(splits, tmp_path, "trackio")
    saved = [np.asarray(Image.open(path).convert("RGB")) for path in (tmp_path / "trackio").rglob("*.png")]
    assert len(saved) == 2
    assert any(np.array_equal(picture, last_picture(trainer)) for picture in saved)


def test_without_a_tracker_nothing_is_drawn(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_lvmae.visualization.predictions.prediction_panels", None)
    trainer = trainer_with(splits, tmp_path)
    trainer.add_callback(PredictionPictures(trainer, trainer.eval_dataset))
    trainer.evaluate()
