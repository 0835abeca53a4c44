"""Show the tokens of a video that a tokenizer finds important, beside other choices, and the reconstruction from each choice.

    python scripts/visualize_tokens.py runs/tokenizer VIDEO.mp4 OUTPUT_DIR --keep_ratio 0.15

The script writes OUTPUT_DIR/VIDEO.png, a strip of moments (the paper's Figures 3 and 4), and OUTPUT_DIR/VIDEO.mp4 with all frames. Tokens
are chosen over the whole clip, as for the masked decoder; the others are drawn dark. Reconstructions also keep the first slot of every
window, as in the tokenizer's training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from transformers_lvmae import FSQMagViTModel
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import FrameSampling, VideoClips, processor_for
from transformers_lvmae.models.masking import topk_mask
from transformers_lvmae.sharing.loading import load_model
from transformers_lvmae.targets.flow import flow_estimator
from transformers_lvmae.targets.token_scores import UNLEARNED, score_tokens
from transformers_lvmae.visualization.drawing import Frames, save_film, save_rows, show_kept, show_scores, to_frames


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("tokenizer", help="folder or Hub id of a tokenizer")
    parser.add_argument("video", type=Path, help="any video file")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument(
        "--keep_ratio",
        type=float,
        within="[0, 1]",
        default=0.15,
        help="share of the clip's tokens to keep, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        choices=UNLEARNED,
        default=["flow", "random"],
        help="other choices to show beside the learned one (default: flow random)",
    )
    parser.add_argument(
        "--num_frames", type=int, within="[1, inf)", default=None, help="frames of the clip (default: the tokenizer's)"
    )
    parser.add_argument(
        "--frame_stride",
        type=int,
        within="[1, inf)",
        default=None,
        help="source frames from one sampled frame to the next (default: evenly over the video)",
    )
    parser.add_argument(
        "--moments", type=int, within="[1, inf)", default=8, help="columns of the strip (default: %(default)s)"
    )
    return parser.parse_args(argv)


@torch.no_grad()
def make_panels(
    model: FSQMagViTModel, pixels: torch.Tensor, keep_ratio: float, choices: Sequence[str]
) -> dict[str, Frames]:
    """What there is to see of a clip (T, C, H, W), T a multiple of the window: labelled clips of the same length.

    `choices` are names of `targets.token_scores.UNLEARNED`, shown beside the learned one.
    """
    config = model.config
    latents, token_codes, _, importance = model.encode(pixels[None]).to_tuple()
    grid = tuple(latents.shape[1:4])
    frames = to_frames(pixels)
    scores = {"learned": importance}
    for name in choices:
        label = f"flow ({flow_estimator()[0]})" if name == "flow" else name
        scores[label] = score_tokens(name, pixels[None], grid)
    panels = {"video": frames, "importance": show_scores(frames, importance[0], grid)}
    panels["all tokens,\ndecoded"] = to_frames(model.decode(token_codes, grid)[0])
    first_slots = torch.zeros(1, *grid, dtype=torch.bool)
    first_slots[:, :: config.window_size // config.tubelet_size] = True
    kept = {name: topk_mask(values, round(keep_ratio * values.shape[1])) for name, values in scores.items()}
    for name, mask in kept.items():
        panels[f"{name},\n{keep_ratio:.0%} kept"] = show_kept(frames, mask[0], grid)
    for name, mask in kept.items():
        codes = token_codes * (mask | first_slots.flatten(1)).unsqueeze(-1)
        panels[f"{name},\ndecoded"] = to_frames(model.decode(codes, grid)[0])
    return panels


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model = load_model(FSQMagViTModel, args.tokenizer).eval()
    window = model.config.window_size
    num_frames = args.num_frames or model.config.num_frames
    if num_frames % window:
        raise ValueError(f"Got {num_frames} frames, expected a multiple of the window's {window}: change --num_frames.")
    processor = processor_for(model.config, do_normalize=False)
    sampling = FrameSampling(args.frame_stride)
    clips = VideoClips([{"video": str(args.video)}], processor, num_frames, sampling=sampling)
    panels = make_panels(model, clips[0]["pixel_values_videos"], args.keep_ratio, args.choices)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    strip, film = (args.output_dir / f"{args.video.stem}{ending}" for ending in (".png", ".mp4"))
    last = num_frames - 1
    moments = [round((number + 0.5) * last / args.moments) for number in range(args.moments)]
    save_rows(strip, panels, moments, f"{args.video.name}: {num_frames} frames, {args.keep_ratio:.0%} of the tokens")
    save_film(film, panels, columns=3)
    print(f"{strip}\n{film}")


if __name__ == "__main__":
    run(main)
