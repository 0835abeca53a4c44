"""Passwords, signatures and tokens are hidden, and nothing else is changed."""

import numpy as np
import pytest

from transformers_lvmae.command_line import run
from transformers_lvmae.models.credentials import mask_credentials
from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.targets.cache import video_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pass@host/a.mp4", "https://***@host/a.mp4"),
        ("got s3://key:p@ss@bucket/a b@c", "got s3://***@bucket/a b@c"),
        (
            "https://host/a.mp4?X-Amz-Date=1&X-Amz-Signature=ab%2Fc&X-Amz-Credential=me/x&part=2",
            "https://host/a.mp4?X-Amz-Date=1&X-Amz-Signature=***&X-Amz-Credential=***&part=2",
        ),
        ("https://h/a?sv=1&sig=a%3D#t", "https://h/a?sv=1&sig=***#t"),
        ("https://h/a?AWSAccessKeyId=AK&Expires=9", "https://h/a?AWSAccessKeyId=***&Expires=9"),
        ("--api_key=abc --dataset_name 'https://h/?token=abc'", "--api_key=*** --dataset_name 'https://h/?token=***'"),
        ("Bearer hf_AbCdEfGhIjKlMnOpQrSt.", "Bearer ***."),
    ],
)
def test_credentials_are_hidden(text, expected):
    assert mask_credentials(text) == expected
    assert mask_credentials(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/data/a@b/clip.mp4",
        "https://host/@user/clip.mp4?part=2",
        "num_tokens=8, topk_sigma=0.1, decoder_mask=random",
        "hf_internal/videos",
        "zip://clip.mp4::s3://bucket/part.zip",
        "monkey=1",
    ],
)
def test_other_text_stays(text):
    assert mask_credentials(text) == text


def test_a_video_s_error_has_no_password():
    for source in ("https://user:secret@127.0.0.1:9/clip.mp4?token=secret", "gopher://user:secret@host/clip.mp4"):
        with pytest.raises(VideoReadError, match=r"Cannot read video .*://") as caught:
            decode_video(source, lambda metadata: np.arange(1))
        error = caught.value
        while error is not None:
            assert "secret" not in str(error)
            error = error.__cause__


def test_a_signature_is_no_part_of_a_cached_video_s_name():
    one, two = (video_key(f"https://host/clips/a.mp4?X-Amz-Signature={name}") for name in ("one", "two"))
    assert one == two


def test_a_program_s_last_sentence_has_no_password():
    def main():
        raise ValueError("Got https://user:secret@host/data, expected a folder: correct it.")

    with pytest.raises(SystemExit, match=r"Got https://\*\*\*@host/data, expected"):
        run(main)
