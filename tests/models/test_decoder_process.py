"""The process that decodes: it ends in time, it may crash, and it opens nothing but the video's bytes."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import av
import numpy as np
import pytest
import torch
from builders import FIXTURES

from transformers_lvmae.models import decoder_process, video_io
from transformers_lvmae.models.decoder_process import as_shown
from transformers_lvmae.models.video_io import decode_video, write_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess


CLIP = FIXTURES / "odd" / "carphone.mp4"


def first_frame(metadata):
    return [0]


def process():
    """The process of this thread, with a video decoded."""
    decode_video(CLIP, first_frame)
    return decoder_process._of_thread.process


def test_one_process_serves_a_thread_and_each_thread_has_its_own():
    first = process()
    assert process() is first
    found = []
    thread = threading.Thread(target=lambda: found.append(process().process.pid))
    thread.start()
    thread.join()
    assert found != [first.process.pid]


def test_a_fork_has_its_own_process():
    """As a data loader's worker: the copy neither uses nor ends the process of the original."""
    original = process().process
    loader = torch.utils.data.DataLoader([str(CLIP)] * 4, batch_size=None, num_workers=2, collate_fn=decoder_of)
    assert original.pid not in set(loader)
    assert original.poll() is None
    decode_video(CLIP, first_frame)


def decoder_of(path):
    decode_video(path, first_frame)
    return decoder_process._of_thread.process.process.pid


def test_a_decoder_that_hangs_in_c_is_ended_in_time(monkeypatch):
    """The alarm works where no Python runs: here the decoder waits in a system call for ever."""
    hung = process().process
    os.kill(hung.pid, signal.SIGSTOP)  # C code that never returns, as the process sees it
    monkeypatch.setattr(decoder_process, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(
        VideoReadError, match=r"carphone\.mp4: got no end of decoding within 0\.3 s, expected one: remove it, or"
    ):
        decode_video(CLIP, first_frame, access=VideoAccess(max_seconds=0.3))
    assert time.monotonic() - began < 5
    assert hung.poll() is not None
    assert process().process.pid != hung.pid


def test_the_alarm_rings_inside_the_decoder(tmp_path):
    """In time, without the caller's help: long frames are still decoded when the alarm rings."""
    texture = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), dtype=np.uint8)
    write_video(tmp_path / "slow.mp4", np.stack([np.roll(texture, 7 * shift, 1) for shift in range(20)]))
    began = time.monotonic()
    with pytest.raises(VideoReadError, match=r"got no end of decoding within 0\.05 s"):
        decode_video(tmp_path / "slow.mp4", lambda metadata: [19], access=VideoAccess(max_seconds=0.05))
    assert time.monotonic() - began < decoder_process.GRACE_SECONDS
    assert decode_video(tmp_path / "slow.mp4", lambda metadata: [19])[0].shape == (1, 3, 720, 1280)


def test_the_alarm_rings_for_a_caller_that_ignores_and_blocks_it(monkeypatch):
    """Both are inherited by processes that it starts."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        monkeypatch.delattr(decoder_process._of_thread, "process", raising=False)
        began = time.monotonic()
        with pytest.raises(VideoReadError, match="got no end of decoding within 1e-05 s"):
            decode_video(CLIP, first_frame, access=VideoAccess(max_seconds=1e-5))
        assert time.monotonic() - began < decoder_process.GRACE_SECONDS
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, before)


def test_a_crash_costs_one_video():
    crashed = process().process

    def crash(metadata):
        os.kill(crashed.pid, signal.SIGSEGV)
        return [0]

    with pytest.raises(VideoReadError, match=r"carphone\.mp4: got a crash of the decoder \(status -11\)"):
        decode_video(CLIP, crash)
    assert decode_video(CLIP, first_frame)[0].shape[0] == 1


@pytest.mark.parametrize("number", decoder_process.CALLERS_SIGNALS)
def test_a_signal_for_all_processes_of_a_job_costs_no_video(number):
    """As clusters send them before the end of a job, and terminals at Ctrl-C."""
    decoder = process().process

    def send(metadata):
        os.kill(decoder.pid, number)
        return [0]

    assert decode_video(CLIP, send)[0].shape[0] == 1
    assert process().process is decoder


def test_a_limit_of_years_is_a_limit():
    assert decode_video(CLIP, first_frame, access=VideoAccess(max_seconds=1e14))[0].shape[0] == 1


@pytest.mark.parametrize("executable", [None, "", "/no/python"])
def test_without_python_the_error_says_so_and_loses_no_files(executable, monkeypatch):
    monkeypatch.setattr(decoder_process, "_of_thread", threading.local())
    monkeypatch.setattr(sys, "executable", executable)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match=r"from starting .*, expected a process that decodes"):
        decode_video(CLIP, first_frame)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_died_while_idle_costs_nothing():
    idle = process().process
    idle.kill()
    idle.wait()
    assert decode_video(CLIP, first_frame)[0].shape[0] == 1


def test_an_error_of_the_caller_stays_what_it_is():
    """And the conversation that it breaks off does not spoil the next one."""

    def fail(frames):
        raise KeyError("my own")

    for broken_off in ({"view": fail}, {"sample_indices": fail}):
        with pytest.raises(KeyError, match="my own"):
            decode_video(CLIP, **{"sample_indices": first_frame, **broken_off})
        assert decode_video(CLIP, first_frame)[0].shape[0] == 1


def test_a_view_may_decode_another_video():
    def view(frames):
        return frames[:, :, :1, :1] + decode_video(CLIP, lambda metadata: [3])[0][:, :, :1, :1]

    clip, _ = decode_video(CLIP, lambda metadata: range(40), view=view)
    whole, _ = decode_video(CLIP, lambda metadata: range(40))
    assert torch.equal(clip, whole[:, :, :1, :1] + whole[3:4, :, :1, :1])


KILLED = """
import os, signal, sys
from transformers_lvmae.models import decoder_process
from transformers_lvmae.models.video_io import decode_video
decode_video(sys.argv[1], lambda metadata: [0])
print(decoder_process._of_thread.process.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_ends_with_its_caller():
    command = [sys.executable, "-c", KILLED, str(CLIP)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_the_process_loads_no_torch():
    pid = process().process.pid
    with open(f"/proc/{pid}/maps") as maps:
        assert "torch" not in maps.read()


def test_without_a_process_the_frames_are_the_same(monkeypatch):
    """As on Windows."""
    expected, metadata = decode_video(CLIP, lambda metadata: range(40))
    monkeypatch.setattr(
        video_io, "opened_video", lambda opening, file, seconds: nullcontext(decoder_process._open_here(opening, file))
    )
    frames, found = decode_video(CLIP, lambda metadata: range(40))
    assert torch.equal(frames, expected)
    assert found == metadata
    with pytest.raises(VideoReadError, match=r"noise\.mp4: got Invalid data"):
        decode_video(CLIP.with_name("noise.mp4"), first_frame)
    with pytest.raises(VideoReadError, match=r"bit_errors\.mp4: got Invalid data"):
        decode_video(CLIP.with_name("bit_errors.mp4"), lambda metadata: range(metadata.total_num_frames))


def test_a_file_object_is_read_in_the_caller():
    class Counting:
        def __init__(self):
            self.file, self.bytes = CLIP.open("rb"), 0

        def read(self, size=-1):
            data = self.file.read(size)
            self.bytes += len(data)
            return data

        def seek(self, *place):
            return self.file.seek(*place)

    source = Counting()
    frames, _ = decode_video(source, lambda metadata: range(40))
    assert torch.equal(frames, decode_video(CLIP, lambda metadata: range(40))[0])
    assert source.bytes > CLIP.stat().st_size / 2

    class Failing(Counting):
        def read(self, size=-1):
            raise ConnectionError("the store is gone")

    with pytest.raises(VideoReadError, match="got ConnectionError: the store is gone, expected the bytes of the file"):
        decode_video(Failing(), first_frame)
    source.file.close()
    with pytest.raises(VideoReadError, match="got ValueError: seek of closed file, expected the bytes of the file"):
        decode_video(source, first_frame)

    class Signed(Counting):
        def read(self, size=-1):
            raise OSError("403 for https://me:word@store/clip.mp4?X-Amz-Signature=abc")

    with pytest.raises(
        VideoReadError, match=r"403 for https://\*\*\*@store/clip.mp4\?X-Amz-Signature=\*\*\*, expected"
    ):
        decode_video(Signed(), first_frame)


def test_a_store_that_does_not_answer_has_a_limit_too():
    class Slow:
        def __init__(self):
            self.file = CLIP.open("rb")

        def read(self, size=-1):
            threading.Event().wait(30)

        def seek(self, *place):
            return self.file.seek(*place)

    began = time.monotonic()
    with pytest.raises(VideoReadError, match=r"no bytes within 0\.5 s, expected|no end of decoding within 0\.5 s"):
        decode_video(Slow(), first_frame, access=VideoAccess(max_seconds=0.5))
    assert time.monotonic() - began < 10


# The display rotation: the picture of each quarter turn and mirroring, as FFmpeg's autorotation shows it

PICTURE = np.array([[1, 2], [3, 4]])
SHOWN = {
    (0, False, False): [[1, 2], [3, 4]],
    (90, False, False): [[2, 4], [1, 3]],
    (180, False, False): [[4, 3], [2, 1]],
    (270, False, False): [[3, 1], [4, 2]],
    (0, True, False): [[2, 1], [4, 3]],
    (0, False, True): [[3, 4], [1, 2]],
    (90, True, False): [[4, 2], [3, 1]],
    (270, True, False): [[1, 3], [2, 4]],
}


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("turn", SHOWN)
def test_frames_are_shown_as_players_show_them(turn, ending, tmp_path):
    path = tmp_path / f"clip.{ending}"
    frame = np.repeat(np.repeat(PICTURE * 50, 24, 0), 32, 1).astype(np.uint8)[:, :, None].repeat(3, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", "g": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        degrees, horizontal, vertical = turn
        stream.set_display_rotation(degrees, hflip=horizontal, vflip=vertical)
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for numbers in (range(30), [29]):
        clip, metadata = decode_video(path, lambda metadata, numbers=numbers: numbers)
        corners = clip[0, 0][[5, -5]][:, [5, -5]].float() / 50
        assert corners.round().int().tolist() == SHOWN[turn]
        assert (metadata.height, metadata.width) == tuple(clip.shape[-2:]) == ((48, 64), (64, 48))[degrees % 180 == 90]
    part, _ = decode_video(path, lambda metadata: [0], start=0.4, end=0.8)
    assert torch.equal(part[0], decode_video(path, lambda metadata: [10])[0][0])


def test_an_odd_display_matrix_leaves_the_frame_upright():
    picture = np.arange(12).reshape(2, 2, 3)
    for matrix in (np.zeros(9, np.int32), np.array([65500, 900, 0, -900, 65500, 0, 0, 0, 1 << 30], np.int32)):
        assert np.array_equal(as_shown(picture, matrix.tobytes()), picture)
