"""Pictures of a pre-training run: a clip, its visible tokens, its decoded tokens, and the predictions."""

import io
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback

from ..models.masking import gather_tubelets, split_tubelets
from ..targets.builder import ClipViews, TargetBuilder
from ..targets.token_scores import SCORES
from .drawing import Frames, save_rows, show_kept, show_scores, to_frames


@torch.no_grad()
def prediction_panels(model: nn.Module, builder: TargetBuilder, batch: dict[str, Any]) -> dict[str, Frames]:
    """Return labeled films of one clip: the clip, its masks, the scores that chose the tokens, and the predictions.

    The tokenizer decodes predicted codes. Tokens without a prediction get 0, the code of a dropped token. Predicted pixels are painted
    into the clip. Scores are shown if the mask ranks tokens by them, and predicted codes if there is a tokenizer.
    Under FSDP, every process must call this function.

    Args:
        model: [`LVMAEForPreTraining`], wrapped or not. It is set to evaluation.
        builder: made with the model's config.
        batch: one collated clip of a pre-training dataset, on the builder's device.
    """
    config, tokenizer, ranking = builder.config, builder.tokenizer, builder.config.decoder_scores
    made, clips = builder(batch), ClipViews(builder, batch["pixel_values_videos"])
    output, grid = model.eval()(**made), clips.grid_size
    decoded = output.bool_decoded_pos
    panels = {"video": to_frames(clips.pixels[0].cpu())}
    if tokenizer is not None:
        panels["tokenizer,\nall tokens"] = to_frames(tokenizer.decode(clips.tokens("codes").codes, grid)[0].cpu())
    if ranking is not None and SCORES[ranking].needs != "noise":
        scores = batch["importance_scores"] if "importance_scores" in batch else clips.scores(ranking)
        panels["importance"] = show_scores(panels["video"], scores[0].cpu(), grid)
    panels["seen by\nthe encoder"] = show_kept(panels["video"], ~output.bool_masked_pos[0], grid)
    panels["reconstructed by\nthe decoder"] = show_kept(panels["video"], decoded[0], grid)
    if config.target_type == "pixels":
        painted = builder.scale.restore(paint_pixels(made["pixel_values_videos"], output.logits, decoded, config))
        panels["predicted\npixels"] = show_kept(to_frames(painted[0].cpu()), decoded[0], grid)
    elif tokenizer is not None:
        codes = extract_model_from_parallel(model).predicted_codes(output.logits)
        predicted = codes.new_zeros(*decoded.shape, codes.shape[-1])
        predicted[decoded] = codes.flatten(0, 1)
        panels["predicted codes,\ndecoded"] = to_frames(tokenizer.decode(predicted, grid)[0].cpu())
    return panels


def paint_pixels(
    clips: torch.Tensor, logits: torch.Tensor, bool_decoded_pos: torch.Tensor, config: Any
) -> torch.Tensor:
    """Paint predicted pixels, logits (B, K, target_size), into clips (B, T, C, H, W) at the decoded positions (B, N).

    A model of standardized pixels does not predict a tubelet's mean and deviation. As in VideoMAE, the true ones are used.
    """
    painted = clips.clone()
    tubelets = split_tubelets(painted, config.tubelet_size, config.patch_size)  # a view: writing to it paints the clips
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
    """Send `prediction_panels` of one clip to TensorBoard and Trackio at each evaluation.

    Args:
        trainer: the [`LVMAEPreTrainer`] that the callback is added to. Its `report_to` names the trackers.
        clips: a dataset of whole clips, of which the first that can be read is shown.
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
        trainer = self.trainer
        clips: Any = self.clips
        shown = next((item for item in clips if item.pop("is_readable", True)), None)
        if shown is None:
            return
        batch = trainer._prepare_inputs(trainer.data_collator([shown]))
        panels = prediction_panels(trainer.model_wrapped, trainer.target_builder, batch)
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
        """Draw the panels as one picture, uint8 (H, W, 3)."""
        file, last = io.BytesIO(), len(panels["video"]) - 1
        save_rows(file, panels, [round(number * last / (self.moments - 1)) for number in range(self.moments)], title)
        return np.asarray(Image.open(file).convert("RGB"))
