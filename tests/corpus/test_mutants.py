"""Damaged files: more than 400, of 28 pairs of codec and container. Each is right, refused or reported.

    pytest -m slow -s tests/corpus

prints the counts. A file is read whole, as eight sampled frames, and as a segment. Read is right if its frames are, bit for bit, those of
a straightforward decoding of the same file (`reference.py`), or of the undamaged one, where the damage lies elsewhere. Other frames
are allowed only with a reported fault.
"""

from collections import Counter

import numpy as np
import pytest
from making import BASES, FRAMES, mutants, write
from reference import decode_all, digest

from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess


START, END = 0.6, 1.3
MODES = {
    "whole": (lambda metadata: range(metadata.total_num_frames), {}),
    "sampled": (lambda metadata: np.arange(8) * metadata.total_num_frames // 8, {}),
    "segment": (lambda metadata: range(metadata.total_num_frames), {"start": START, "end": END}),
}


def expected(reference, mode, numbers):
    """The digests of the frames with these numbers; of a segment, of all frames in it. None for a frame that there is not."""
    digests = reference["digests"]
    if mode == "segment":
        times = zip(reference["seconds"], digests)
        digests = [value for time, value in times if time is not None and START - 1e-6 <= time < END - 1e-6]
        return digests if len(digests) == len(numbers) else [None] * len(numbers)
    return [digests[number] if number < len(digests) else None for number in numbers]


def refusal(name, message):
    """The kind of a refusal, whose message must name the file, what was found and what was expected."""
    assert message.startswith(f"Cannot read video {name}: got ")
    assert "expected " in message
    return "refused: crash" if "crash" in message else "refused: time" if "no end" in message else "refused"


def outcome(path, mode, reference, original):
    """What reading a file in a mode comes to."""
    sample, segment = MODES[mode]
    try:
        clip, metadata = decode_video(path, sample, access=VideoAccess(max_seconds=20), **segment)
    except VideoReadError as error:
        return refusal(str(path), str(error))
    got = [digest(frame.permute(1, 2, 0).numpy()) for frame in clip]
    plain = expected(reference or {"digests": [], "seconds": []}, mode, metadata.frames_indices)
    if path.name.startswith("prores"):
        # FFmpeg leaves damaged parts of its frames as the memory was, and says nothing: only undamaged frames are compared.
        whole = expected(original, mode, metadata.frames_indices)
        plain = [one if one == other else None for one, other in zip(plain, whole)]
    count = len(reference["digests"]) if reference else 0
    same_count = mode != "whole" or len(got) == count
    # A frame that two plain decodings show differently (None, although it exists) is compared with nothing.
    undetermined = mode != "segment" and reference is not None
    agrees = [
        one == other or (undetermined and other is None and number < count)
        for one, other, number in zip(got, plain, metadata.frames_indices)
    ]
    if same_count and all(agrees):
        return "right" if metadata.fault is None else "right and reported"
    if got == expected(original, mode, metadata.frames_indices):
        return "right: the damage lies elsewhere"
    return "WRONG" if metadata.fault is None else "reported"


@pytest.mark.slow
def test_every_damaged_file_is_right_refused_or_reported(tmp_path, capsys):
    originals, files = [], []
    for seed, (name, recipe) in enumerate(BASES.items()):
        original = write(tmp_path / name, *recipe)
        originals.append(original)
        for number, (kind, data) in enumerate(mutants(original.read_bytes(), seed)):
            path = tmp_path / f"{original.stem}_{number:02d}_{kind.replace(' ', '_')}{original.suffix}"
            path.write_bytes(data)
            files.append((path, original))
    references = dict(decode_all([*originals, *(path for path, _ in files)]))
    for path in originals:
        for mode in MODES:
            assert outcome(path, mode, references[path], references[path]) == "right", (path.name, mode)
        assert len(references[path]["digests"]) == FRAMES
    counts = {mode: Counter() for mode in MODES}
    wrong = []
    for path, original in files:
        for mode in MODES:
            found = outcome(path, mode, references[path], references[original])
            counts[mode][found] += 1
            wrong += [f"{path.name} {mode}"] if found == "WRONG" else []
    with capsys.disabled():
        print(f"\n{len(files)} damaged files of {len(BASES)} kinds")
        for mode, found in counts.items():
            print(f"{mode}:", ", ".join(f"{number} {name}" for name, number in sorted(found.items())))
    assert len(files) >= 300
    assert wrong == []
    assert all(found["refused: time"] == 0 for found in counts.values())
