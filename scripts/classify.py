"""Classify video files with a fine-tuned model.

python scripts/classify.py runs/finetune VIDEO.mp4 [MORE.mp4 ...]
"""

import argparse

from transformers import pipeline

import transformers_lvmae  # noqa: F401  (registers the model with the Auto classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    parser.add_argument("videos", nargs="+", help="video files")
    parser.add_argument("--top_k", type=int, default=3, help="classes to print per video (default: %(default)s)")
    args = parser.parse_args()
    classifier = pipeline("video-classification", model=args.model)
    for video in args.videos:
        answers = classifier(video, top_k=args.top_k)
        print(video, *(f"{answer['label']} {answer['score']:.3f}" for answer in answers), sep="\n  ")


if __name__ == "__main__":
    main()
