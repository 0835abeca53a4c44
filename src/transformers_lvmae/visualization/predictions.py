"""What a pre-training run shows of itself: a clip, what the encoder sees of it, what is decoded and what is predicted."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback

from ..models.masking import gather_tubelets, split_tubelets
from .drawing import Frames, save_rows, show_kept, show_scores, to_frames


@torch.no_grad()
def prediction_panels(trainer: Any, item: dict[str, Any]) -> dict[str, Frames]:
    """Labelled clips of the same length: a clip, its masks, the scores that chose the tokens, and what the model predicts.

    Predicted codes are decoded by the tokenizer, with 0, the code of a dropped token, wherever nothing is predicted; predicted
    pixels stand where they belong. Scores are shown of the masks that go by scores, predicted codes where there is a tokenizer.
    Under FSDP every process must call it.

    Args:
        trainer: [`LVMAEPreTrainer`].
        item: one item of its data set.
    """
    batch = trainer.unpack(trainer._prepare_inputs(trainer.data_collator([item])))
    clips = batch["pixel_values_videos"]
    config, tokenizer = trainer.model_config, trainer.video_tokenizer
    model = trainer.model_wrapped.eval()
    output = model(**trainer.add_targets(batch))
    grid = (clips.shape[1] // config.tubelet_size, *(side // config.patch_size for side in clips.shape[-2:]))
    frames = to_frames(trainer.raw_pixels(clips)[0].cpu())
    panels = {"video": frames}
    scores = batch.get("importance_scores")
    if scores is None and config.decoder_mask in ("motion", "flow", "everest"):
        scores = trainer.motion_scores(clips)
    if tokenizer is not None:
        tokens = tokenizer.encode(trainer.tokenizer_view(clips))
        scores = tokens.importance_scores if scores is None else scores
        panels["tokenizer,\nall tokens"] = to_frames(tokenizer.decode(tokens.codes, grid)[0].cpu())
    if scores is not None and config.decoder_mask not in ("none", "random", "uniform"):
        panels["importance"] = show_scores(frames, scores[0].cpu(), grid)
    panels["seen by\nthe encoder"] = show_kept(frames, ~output.bool_masked_pos[0], grid)
    panels["reconstructed by\nthe decoder"] = show_kept(frames, output.bool_decoded_pos[0], grid)
    if config.target_type == "pixels":
        painted = trainer.raw_pixels(paint_pixels(clips, output.logits, output.bool_decoded_pos, config))
        panels["predicted\npixels"] = show_kept(to_frames(painted[0].cpu()), output.bool_decoded_pos[0], grid)
    elif tokenizer is not None:
        codes = trainer.accelerator.unwrap_model(trainer.model).predicted_codes(output.logits)
        predicted = codes.new_zeros(*output.bool_decoded_pos.shape, codes.shape[-1])
        predicted[output.bool_decoded_pos] = codes.flatten(0, 1)
        panels["predicted codes,\ndecoded"] = to_frames(tokenizer.decode(predicted, grid)[0].cpu())
    return panels


def paint_pixels(
    clips: torch.Tensor, logits: torch.Tensor, bool_decoded_pos: torch.Tensor, config: Any
) -> torch.Tensor:
    """Clips (B, T, C, H, W) with the predicted pixels, logits (B, K, target_size), at the decoded positions (B, N).

    A model of standardised pixels does not predict a tubelet's mean and deviation: these are the true ones, as VideoMAE shows them.
    """
    painted = clips.clone()
    tubelets = split_tubelets(painted, config.tubelet_size, config.patch_size)  # a view: to set it is to paint
    _, height, width = tubelets.shape[1:4]
    rows, places = bool_decoded_pos.nonzero(as_tuple=True)
    decoded = places.view(len(clips), -1)
    pixels = gather_tubelets(tubelets, decoded).movedim(3, -1)
    predicted = logits.to(pixels).view_as(pixels)
    if config.norm_pix_loss:
        mean, deviation = pixels.mean(dim=(2, 3, 4), keepdim=True), pixels.std(dim=(2, 3, 4), keepdim=True)
        predicted = predicted * (deviation + 1e-6) + mean
    predicted = predicted.movedim(-1, 3).flatten(0, 1)
    tubelets[rows, places // (height * width), places // width % height, places % width] = predicted
    return painted


class PredictionPictures(TrainerCallback):
    """At each evaluation, `prediction_panels` of the first clip of a data set, to TensorBoard and Trackio where they are in use.

    Args:
        trainer: [`LVMAEPreTrainer`], with the trackers of its `report_to`; add the callback to it.
        clips: items as the trainer's own data sets give them.
        moments: how many frames are shown.
    """

    def __init__(self, trainer: Any, clips: Dataset, moments: int = 8):
        self.trainer = trainer
        self.clips = clips
        self.moments = moments

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        callbacks = self.trainer.callback_handler.callbacks
        trackers = [callback for callback in callbacks if isinstance(callback, TensorBoardCallback | TrackioCallback)]
        if not trackers:
            return
        panels = prediction_panels(self.trainer, next(iter(self.clips)))
        if not state.is_world_process_zero:
            return
        picture = self._draw(panels, f"step {state.global_step}")
        for tracker in trackers:
            if isinstance(tracker, TensorBoardCallback):
                tracker.tb_writer.add_image("eval/prediction", picture, state.global_step, dataformats="HWC")
                tracker.tb_writer.flush()
            else:
                image = tracker._trackio.Image(picture)
                tracker._trackio.log({"eval/prediction": image, "train/global_step": state.global_step})

    def _draw(self, panels: dict[str, Frames], title: str) -> np.ndarray:
        """uint8 (H, W, 3)."""
        file, last = io.BytesIO(), len(panels["video"]) - 1
        save_rows(file, panels, [round(number * last / (self.moments - 1)) for number in range(self.moments)], title)
        return np.asarray(Image.open(file).convert("RGB"))


__all__ = ["PredictionPictures", "paint_pixels", "prediction_panels"]
