"""Make a checkpoint ready to share: a folder with weights, config, processor, model card and the code itself.

    python scripts/export_model.py runs/finetune exported
    python scripts/export_model.py runs/finetune exported --onnx --push_to_hub USER/NAME

The folder, or the repository, loads without this package; it needs transformers, torch, einops, torchvision and PyAV:

    pipeline("video-classification", model="exported", trust_remote_code=True, top_k=5)("clip.mp4")
    AutoModelForVideoClassification.from_pretrained("exported", trust_remote_code=True)

--onnx adds onnx/model.onnx, for any number of clips of the config's length and size. The checkpoint's model card is copied; if there is
none, a short one is written.
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoVideoProcessor
from transformers.utils import cached_file

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.sharing.export import export_onnx, load_any_model, save_with_code
from transformers_lvmae.sharing.model_card import CARD_NAME, ModelCardFacts, may_write_card, write_model_card


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("checkpoint", help="folder or Hub id of a model or tokenizer")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--onnx", action="store_true", help="also write onnx/model.onnx (needs the extra onnx)")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="upload the folder to this repository")
    return parser.parse_args(argv)


def upload(folder: Path, repo_id: str) -> str:
    """Upload a folder, except its card if somebody wrote or changed the one on the Hub. Returns the address of the commit."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    left_out = []
    if api.file_exists(repo_id, CARD_NAME):
        with tempfile.TemporaryDirectory() as there:
            api.hf_hub_download(repo_id, CARD_NAME, local_dir=there)
            left_out = [] if may_write_card(there) else [CARD_NAME]
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, ignore_patterns=left_out, commit_message="Model with its code"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model = load_any_model(args.checkpoint).eval()
    save_with_code(model, args.output_dir, AutoVideoProcessor.from_pretrained(args.checkpoint))
    card = cached_file(args.checkpoint, CARD_NAME, _raise_exceptions_for_missing_entries=False)
    if may_write_card(args.output_dir):
        if card:
            (args.output_dir / CARD_NAME).write_text(Path(card).read_text(encoding="utf-8"), encoding="utf-8")
        else:
            name = args.push_to_hub or args.output_dir.absolute().name
            write_model_card(args.output_dir, model.config, type(model).__name__, ModelCardFacts(name.split("/")[-1]))
    if args.onnx:
        export_onnx(model, args.output_dir / "onnx")
    print(f"{args.output_dir}: {', '.join(sorted(path.name for path in args.output_dir.iterdir()))}")
    if args.push_to_hub:
        print(upload(args.output_dir, args.push_to_hub))


if __name__ == "__main__":
    run(main)
