"""Convert a VideoMAE checkpoint to LVMAE: one of transformers (a folder or Hub id) or an original .pth file.

    python scripts/convert_videomae.py MCG-NJU/videomae-base runs/videomae-base-128 --num_frames 128
    python scripts/convert_videomae.py vit_b_k710_dl_from_giant.pth runs/videomae2-base-128 --num_frames 128

The class is the counterpart of the one that the checkpoint was saved from (transformers_lvmae.sharing.convert_videomae). Positions are
computed, so --num_frames changes no weight. The source's processor is converted too, if there is one.
"""

import os

from transformers_lvmae.command_line import CommandLine, number, run
from transformers_lvmae.sharing.convert_videomae import convert, convert_original


def main() -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("src", help="folder or Hub id of a transformers VideoMAE, or an original .pth file")
    parser.add_argument("dst", help="folder to write")
    parser.add_argument(
        "--num_frames", type=int, within="[1, inf)", help="frames of a clip (default: the source's; original files: 16)"
    )
    original = parser.add_argument_group("original files", "what the shapes of the weights do not show")
    original.add_argument(
        "--image_size",
        type=number(int, "[1, inf)"),
        default=224,
        help="height and width of a frame in pixels (default: 224)",
    )
    original.add_argument(
        "--num_attention_heads",
        type=number(int, "[1, inf)"),
        help="heads of the encoder (default: those of the original of its width)",
    )
    original.add_argument(
        "--decoder_num_attention_heads",
        type=number(int, "[1, inf)"),
        help="heads of the decoder (default: those of the original)",
    )
    args = parser.parse_args()
    if os.path.isfile(args.src):
        convert_original(**vars(args))
    else:
        convert(args.src, args.dst, args.num_frames)


if __name__ == "__main__":
    run(main)
