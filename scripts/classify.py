"""Classify video files with a fine-tuned model.

python scripts/classify.py runs/finetune VIDEO.mp4 [MORE.mp4 ...]
"""

from transformers import pipeline

from transformers_lvmae import LVMAEForVideoClassification
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.sharing.loading import check_head


def main() -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    parser.add_argument("videos", nargs="+", help="video files")
    parser.add_argument(
        "--top_k", type=int, within="[1, inf)", default=3, help="classes to print per video (default: %(default)s)"
    )
    args = parser.parse_args()
    check_head(args.model, LVMAEForVideoClassification)
    classifier = pipeline("video-classification", model=args.model)
    for video in args.videos:
        answers = classifier(video, top_k=args.top_k)
        print(video, *(f"{answer['label']} {answer['score']:.3f}" for answer in answers), sep="\n  ")


if __name__ == "__main__":
    run(main)
