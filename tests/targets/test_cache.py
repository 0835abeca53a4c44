"""The target cache: the same targets, masks and losses as on the fly, also if several or killed processes wrote it."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builders import CLIPS, MODEL, SCRIPTS, TESTS, TOKENIZER, assert_same, load_script
from datasets.arrow_writer import ArrowWriter

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.command_line import sentence_of
from transformers_lvmae.data import (
    ClipAugmentation,
    FrameSampling,
    MaskedVideoClips,
    TooManyBrokenVideos,
    VideoReading,
    load_video_dataset,
    processor_for,
)
from transformers_lvmae.data.broken_videos import read_broken_videos
from transformers_lvmae.models.masking import cut_visible_tubelets, mask_to_indices
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.targets.builder import TargetBuilder
from transformers_lvmae.targets.cache import (
    CachedVideoClips,
    TargetCache,
    clips_to_train_on,
    content_key,
    count_shards,
    list_shards,
)
from transformers_lvmae.targets.cache_writing import ByteClips, TargetMaker, begin_cache, make_manifest, write_targets
from transformers_lvmae.targets.flow import flow_estimator


PROCESSOR = processor_for(MODEL)
MASKS = {"grid_size": MODEL.grid_size, "mask_ratio": MODEL.mask_ratio}
DRAWN = {"training": True, "sampling": FrameSampling(frame_stride=1), "seed": 5}
DRAWN |= {"augmentation": ClipAugmentation(min_crop_scale=0.4, horizontal_flip=True)}


@pytest.fixture(scope="module")
def rows():
    return load_video_dataset(CLIPS)["train"].select(range(6))


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return FSQMagViTModel(TOKENIZER)


def write_cache(folder, rows, tokenizer, num_epochs=1, clips_per_shard=2, batch_size=2, scores="learned", **options):
    clips = ByteClips(rows, PROCESSOR, MODEL.num_frames, **options)
    maker = TargetMaker(TargetBuilder(MODEL, PROCESSOR, tokenizer), scores)
    manifest = make_manifest(clips, maker, num_epochs, clips_per_shard)
    begin_cache(folder, manifest)
    write_targets(folder, clips, maker, manifest, batch_size=batch_size)
    return TargetCache(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, rows, tokenizer):
    """Of clips that are the same in every epoch."""
    return write_cache(tmp_path_factory.mktemp("cache"), rows, tokenizer)


def cached(rows, cache, **options):
    return CachedVideoClips(rows, PROCESSOR, MODEL.num_frames, cache=cache, **{**MASKS, **options})


def make_trainer(folder, clips, tokenizer=None, model=MODEL, **arguments):
    torch.manual_seed(0)
    options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    options |= {"per_device_train_batch_size": 3, **arguments}
    return LVMAEPreTrainer(
        LVMAEForPreTraining(model),
        LVMAEPreTrainingArguments(output_dir=str(folder), **options),
        train_dataset=clips,
        eval_dataset=clips,
        processing_class=PROCESSOR,
        video_tokenizer=tokenizer,
    )


def add_targets(trainer, numbers):
    return trainer.target_builder(trainer.data_collator([trainer.train_dataset[number] for number in numbers]))


def assert_served_alike(served, made):
    """Targets and masks bit for bit, and the tubelets that the whole clips have at the visible places."""
    for name in ("target_codes", "bool_masked_pos", "bool_decoded_pos"):
        assert torch.equal(served[name], made[name]), name
    embed = LVMAEForPreTraining(MODEL).lvmae.embeddings
    positions = mask_to_indices(~made["bool_masked_pos"], "visible positions")
    whole = embed(made["pixel_values_videos"], positions)
    assert torch.equal(embed(served["visible_tubelets"], positions), whole)
    assert set(served) == {*made, "visible_tubelets"} - {"pixel_values_videos"}


def test_fixed_clips_are_served_as_on_the_fly_in_every_epoch(rows, tokenizer, cache, tmp_path):
    """In other batches than those that the cache was made in."""
    clips = MaskedVideoClips(rows, PROCESSOR, MODEL.num_frames, training=True, **MASKS)
    flying, serving = (
        make_trainer(tmp_path, clips, tokenizer),
        make_trainer(tmp_path, cached(rows, cache, training=True)),
    )
    masks = []
    for epoch in (0, 1, 7):
        for trainer in (flying, serving):
            trainer.train_dataset.set_epoch(epoch)
        for numbers in ([5, 0, 3], [1], [4, 2]):
            made, served = add_targets(flying, numbers), add_targets(serving, numbers)
            assert_served_alike(served, made)
        masks.append(made["bool_masked_pos"])
    assert not torch.equal(masks[0], masks[1])


def test_drawn_clips_are_served_in_the_cached_epochs_and_then_again_under_new_masks(rows, tokenizer, tmp_path):
    cache = write_cache(tmp_path, rows, tokenizer, num_epochs=2, **DRAWN)
    clips = MaskedVideoClips(rows, PROCESSOR, MODEL.num_frames, **MASKS, **DRAWN)
    flying, serving = make_trainer(tmp_path, clips, tokenizer), make_trainer(tmp_path, cached(rows, cache, **DRAWN))
    seen = []
    for epoch in (0, 1):
        flying.train_dataset.set_epoch(epoch)
        serving.train_dataset.set_epoch(epoch)
        seen.append(add_targets(serving, range(6)))
        assert_served_alike(seen[-1], add_targets(flying, range(6)))
    assert not torch.equal(seen[0]["target_codes"], seen[1]["target_codes"])
    for epoch in (2, 3):
        serving.train_dataset.set_epoch(epoch)
        later = add_targets(serving, range(6))
        assert torch.equal(later["target_codes"], seen[epoch - 2]["target_codes"])
        assert not torch.equal(later["bool_masked_pos"], seen[epoch - 2]["bool_masked_pos"])
        assert len(later["bool_masked_pos"].unique(dim=0)) > 3  # each row draws its own
        # The tubelets under the new mask, from the clip that the codes were made of.
        flying.train_dataset.set_epoch(epoch - 2)
        clip = flying.train_dataset[4]["pixel_values_videos"]
        tubelets = cut_visible_tubelets(clip, MODEL.grid_size, later["bool_masked_pos"][4])
        assert torch.equal(serving.train_dataset[4]["visible_tubelets"], tubelets)


def test_a_run_on_cached_targets_is_the_run_on_the_fly(rows, tokenizer, cache, tmp_path):
    """Losses and weights after two epochs, evaluation included."""
    clips = MaskedVideoClips(rows, PROCESSOR, MODEL.num_frames, training=True, **MASKS)
    runs = [
        make_trainer(tmp_path / name, clips, tokenizer, num_train_epochs=2)
        for name, clips, tokenizer in (("fly", clips, tokenizer), ("cache", cached(rows, cache, training=True), None))
    ]
    for run in runs:
        run.train()
    first, second = ([entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in runs)
    assert len(first) == 4
    assert second == first
    for name, value in runs[0].model.state_dict().items():
        assert torch.equal(runs[1].model.state_dict()[name], value), name
    assert runs[1].evaluate()["eval_loss"] == pytest.approx(runs[0].evaluate()["eval_loss"], rel=1e-6)


def test_visible_tubelets_give_the_whole_clips_loss_and_gradients(rows, tokenizer, cache, tmp_path):
    """To 1e-6: the same products, of a contiguous copy instead of a view."""
    clips = MaskedVideoClips(rows, PROCESSOR, MODEL.num_frames, **MASKS)
    made = add_targets(make_trainer(tmp_path, clips, tokenizer), range(3))
    served = add_targets(make_trainer(tmp_path, cached(rows, cache)), range(3))
    model = LVMAEForPreTraining(MODEL)
    results = []
    for batch in (made, served):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-5, atol=1e-7)


def test_the_real_grid_takes_80_kilobytes_on_disk_and_two_megabytes_of_a_worker(tmp_path):
    """12,544 tokens with 2**18 codes: on disk at most 80,000 bytes a clip; from a worker, a 36th of a clip in float32."""
    config = LVMAEConfig()
    processor = processor_for(config)
    rows = load_video_dataset(CLIPS)["train"].select(range(4))

    class Maker(TargetMaker):
        def __call__(self, clips):
            numbers = torch.randint(2**18, (len(clips), config.seq_length))
            return {"code_indices": numbers, "importance_scores": torch.rand(len(clips), config.seq_length).half()}

    tokenizer = FSQMagViTModel(FSQMagViTConfig(base_channels=8, num_res_blocks=1))
    clips, maker = ByteClips(rows, processor, config.num_frames), Maker(TargetBuilder(config, processor, tokenizer))
    manifest = make_manifest(clips, maker)
    begin_cache(tmp_path, manifest)
    write_targets(tmp_path, clips, maker, manifest)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / len(rows) <= 80_000
    masks = {"grid_size": config.grid_size, "mask_ratio": config.mask_ratio}
    cached = CachedVideoClips(rows, processor, config.num_frames, cache=TargetCache(tmp_path), **masks)
    sizes = {name: value.nbytes for name, value in cached[0].items()}
    assert sizes["visible_tubelets"] == 1280 * 2 * 3 * 16 * 16  # of 64 x 14 x 14 tubelets, 64 x 20 are seen
    assert sum(sizes.values()) == pytest.approx(2.104e6, rel=0.02)
    whole = MaskedVideoClips(rows, processor, config.num_frames, **masks)[0]["pixel_values_videos"]
    assert whole.nbytes == 128 * 3 * 224 * 224
    assert 4 * whole.nbytes / sum(sizes.values()) > 36


@pytest.mark.parametrize(
    ("levels", "kind"),
    [((8, 8), "uint8"), ((8, 5, 5), "uint8"), ((8, 8, 4), "uint8"), ((8, 8, 5), "uint16"), ((8,) * 6, "uint32")],
)
def test_codes_take_the_smallest_integers_that_hold_them(levels, kind):
    tokenizer = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), "levels": levels}))
    model = LVMAEConfig(**{**MODEL.to_dict(), "levels": levels})
    features = TargetMaker(TargetBuilder(model, PROCESSOR, tokenizer)).features
    assert features["code_indices"].feature.dtype == kind
    assert np.prod(levels) - 1 <= np.iinfo(kind).max
    assert features["importance_scores"].feature.dtype == "float16"


@pytest.mark.parametrize("kind", ["motion", "flow"])
def test_scores_alone_leave_the_clips_whole_and_choose_as_on_the_fly(kind, rows, tokenizer, tmp_path):
    if kind == "flow":
        pytest.importorskip("cv2")
    cache = write_cache(tmp_path / kind, rows, None, scores=kind)
    assert cache.manifest["flow_estimator"] == (flow_estimator()[0] if kind == "flow" else None)
    model = LVMAEConfig(**{**MODEL.to_dict(), "decoder_mask": kind})
    serving = make_trainer(tmp_path, clips_to_train_on(rows, PROCESSOR, model, cache), tokenizer, model)
    flying = make_trainer(tmp_path, clips_to_train_on(rows, PROCESSOR, model), tokenizer, model)
    made, served = add_targets(flying, range(3)), add_targets(serving, range(3))
    assert set(served) == set(made)
    for name in ("pixel_values_videos", "target_codes", "bool_masked_pos", "bool_decoded_pos"):
        assert torch.equal(served[name], made[name]), name


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"target_type": "levels"}, {"visible_tubelets", "target_codes"}),
        ({"target_type": "levels", "encoder_mask": "random"}, {"visible_tubelets", "target_codes"}),
        ({"decoder_mask": "uniform"}, {"visible_tubelets", "target_codes"}),
        ({"decoder_mask": "random"}, {"visible_tubelets", "target_codes"}),
        ({"target_type": "pixels"}, {"pixel_values_videos"}),
    ],
)
def test_every_mask_and_target_that_a_cache_serves_trains_as_on_the_fly(fields, keys, rows, cache, tokenizer, tmp_path):
    model = LVMAEConfig(**{**MODEL.to_dict(), **fields})
    trainers = [
        make_trainer(tmp_path, clips_to_train_on(rows, PROCESSOR, model, *source), tokens, model)
        for source, tokens in (((), tokenizer), ((cache,), None))
    ]
    made, served = (add_targets(trainer, range(3)) for trainer in trainers)
    masks = {"bool_masked_pos", "bool_decoded_pos", "num_visible", "num_decoded"}
    assert set(served) == keys | masks
    assert torch.equal(served["bool_decoded_pos"], made["bool_decoded_pos"])
    losses = [trainer.model.eval()(**batch).loss.item() for trainer, batch in zip(trainers, (made, served))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.fixture
def damaged(tmp_path):
    """Videos of which the fourth is empty."""
    shutil.copytree(CLIPS / "test", tmp_path / "videos" / "train")
    rows = load_video_dataset(tmp_path / "videos")["train"]
    Path(rows[3]["video"]["path"]).write_bytes(b"")
    return rows


SKIP = VideoReading(on_error="skip")


@pytest.mark.parametrize("options", [{"training": True}, DRAWN])
def test_a_video_that_cannot_be_read_has_the_same_one_in_its_place_in_both(options, damaged, tokenizer, tmp_path):
    options = {**options, "reading": SKIP}
    cache = write_cache(tmp_path / "cache", damaged, tokenizer, **options)
    clips = MaskedVideoClips(damaged, PROCESSOR, MODEL.num_frames, **options, **MASKS)
    serving = make_trainer(tmp_path, cached(damaged, cache, **options))
    flying = make_trainer(tmp_path, clips, tokenizer)
    assert_served_alike(add_targets(serving, range(6)), add_targets(flying, range(6)))
    serving.train_dataset.set_epoch(1)
    assert serving.train_dataset[3]["code_indices"].shape == (64,)
    with pytest.raises(VideoReadError, match="Cannot read video"):
        write_cache(tmp_path / "other", damaged, tokenizer)


def test_codes_of_a_video_that_cannot_be_read_are_not_cached(damaged, tokenizer, tmp_path):
    """Neither the codes of a black clip nor those of the video in its place, whoever reads it."""
    for name, options in (("train", {"training": True}), ("eval", {})):
        cache = write_cache(tmp_path / name, damaged, tokenizer, reading=SKIP, **options)
        row = cache.epochs[0].with_format("numpy")[3]
        assert (row["key"].split("/")[-1], row["video"], row["content"]) == ("clip_00003.mp4", "", "")
        assert not row["code_indices"].any()
        assert not row["importance_scores"].any()
        with pytest.raises(
            VideoReadError, match=r"Got no targets of it\.mp4 in .* delete epoch_00000_row_000000002\.arrow"
        ):
            cache.targets(0, 3, "it.mp4")
    items = [cached(damaged, cache, reading=SKIP)[number] for number in range(6)]
    assert [item["is_readable"] for item in items] == [True, True, True, False, True, True]
    assert all(items[3][name].shape == items[2][name].shape for name in items[2] if name != "is_readable")


@pytest.mark.parametrize("when", ["cache", "training"])
def test_a_video_that_can_be_read_at_one_time_only_is_broken(when, damaged, tokenizer, tmp_path):
    path, other = (Path(damaged[number]["video"]["path"]) for number in (3, 1))
    if when == "cache":
        shutil.copy(other, path)
    reading = VideoReading(on_error="skip", broken_folder=tmp_path / "broken")
    caches = [
        write_cache(tmp_path / str(train), damaged, tokenizer, training=train, reading=SKIP) for train in (True, False)
    ]
    if when == "cache":
        path.write_bytes(b"")
    else:
        shutil.copy(other, path)
    training, evaluating = (
        cached(damaged, cache, training=train, reading=reading) for cache, train in zip(caches, (True, False))
    )
    for epoch in (0, 2):
        training.set_epoch(epoch)
        replaced, *others = [training[number] for number in (3, 0, 1, 2, 4, 5, 6, 7)]
        assert any(torch.equal(replaced["code_indices"], item["code_indices"]) for item in others)
    assert not evaluating[3]["is_readable"]
    assert evaluating[4]["is_readable"]
    assert [Path(name).name for name in read_broken_videos(tmp_path / "broken")] == ["clip_00003.mp4"]
    assert training.broken.failed >= 2
    assert evaluating.broken.failed == 1
    with pytest.raises(VideoReadError, match=r"clip_00003\.mp4"):
        cached(damaged, caches[0], training=True)[3]


def test_too_many_broken_videos_stop_a_cache_in_workers_too(tokenizer, tmp_path):
    table = tmp_path / "table.csv"
    videos = [str(CLIPS / "test" / "clip_00000.mp4"), *[str(tmp_path / f"none_{number}.mp4") for number in range(12)]]
    table.write_text("\n".join(["video", *videos]) + "\n")
    clips = ByteClips(load_video_dataset(table)["train"], PROCESSOR, MODEL.num_frames, reading=SKIP)
    maker = TargetMaker(TargetBuilder(MODEL, PROCESSOR, tokenizer))
    manifest = make_manifest(clips, maker, 1, 4)
    begin_cache(tmp_path, manifest)
    with pytest.raises(TooManyBrokenVideos, match="Got 11 unreadable videos of the"):
        write_targets(tmp_path, clips, maker, manifest, batch_size=2, num_workers=1)


def test_a_cache_of_other_videos_with_the_same_names_is_refused(rows, tokenizer, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(CLIPS / "test", tmp_path / name / "train" / "videos")
    paths = [Path(row["video"]["path"]) for row in load_video_dataset(tmp_path / "other")["train"]]
    shutil.copy(paths[0], paths[1])
    cache = write_cache(tmp_path / "cache", load_video_dataset(tmp_path / "one")["train"], tokenizer)
    clips = cached(load_video_dataset(tmp_path / "other")["train"], cache)  # not opened: their names are the same
    assert clips[0]["code_indices"].shape == (64,)
    with pytest.raises(ValueError, match=r"with a file of .*\.mp4 \(bytes, hash\): \d+ \w+, expected \d+ \w+: run"):
        clips[1]


def test_targets_of_another_video_are_refused(cache):
    with pytest.raises(ValueError, match=r"with the video shown as number 2: .*\.mp4, expected other\.mp4: run"):
        cache.targets(0, 2, "other.mp4")


def test_the_key_of_a_content_is_of_bytes_and_files_alike(tmp_path):
    data = bytes(range(256)) * 400
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    key = content_key({"path": str(path), "bytes": None})
    assert key == content_key({"path": "elsewhere.mp4", "bytes": data}) == content_key(data)
    others = [data + b"x", b"x" + data[1:], data[:-1] + b"x"]
    assert len({key, *map(content_key, others)}) == 4
    assert content_key({"path": "https://example.org/a.mp4", "bytes": None}) == ""
    path.write_bytes(data[:100])
    assert content_key(str(path)) == content_key(data[:100])


def rewrite(cache, change, number=0):
    """Write a file of a cache again, with its columns changed by `change`."""
    path = cache.folder / sorted(path.name for path in cache.folder.glob("*.arrow"))[number]
    rows = datasets.Dataset.from_file(str(path), in_memory=True)
    rows = change(rows)
    with ArrowWriter(features=rows.features, path=str(path)) as writer:
        for row in rows.with_format("numpy"):
            writer.write(row)
        writer.finalize()


@pytest.fixture
def copied(cache, tmp_path):
    """A copy of the cache."""
    shutil.copytree(cache.folder, tmp_path / "copied")
    return TargetCache(tmp_path / "copied")


def as_version_0_1(rows):
    return rows.remove_columns(["checksum", "content"])


def set_values(name, value):
    """Return a change that sets the first number of a column in the first row."""

    def change(rows):
        columns = rows.with_format("numpy")[:]
        columns[name] = np.stack(columns[name])
        columns[name][0, 0] = value
        return datasets.Dataset.from_dict(columns, features=rows.features)

    return change


@pytest.mark.parametrize("name", ["importance_scores", "code_indices"])
def test_a_changed_number_is_found_by_its_checksum(name, rows, copied):
    rewrite(copied, set_values(name, 1), number=1)
    clips = cached(rows, TargetCache(copied.folder))
    assert clips[0]["code_indices"].shape == (64,)
    with pytest.raises(
        ValueError, match=r"Got a damaged file epoch_00000_row_000000002\.arrow in .*: delete the file and run"
    ):
        clips[2]


def test_a_cache_without_checksums_is_read_with_a_warning_and_its_numbers_are_checked(
    rows, copied, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers_lvmae"), "propagate", True)
    expected = [cached(rows, copied)[number] for number in range(6)]
    for number in range(3):
        rewrite(copied, as_version_0_1, number)
    caplog.clear()
    cache = TargetCache(copied.folder)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "was written by version 0.1" in message
    for number, item in enumerate(cached(rows, cache)):
        assert all(torch.equal(item[name], expected[number][name]) for name in ("code_indices", "importance_scores"))
    rewrite(copied, set_values("code_indices", TOKENIZER.codebook_size))
    rewrite(copied, set_values("importance_scores", np.nan), number=1)
    rewrite(copied, set_values("importance_scores", np.inf), number=2)
    clips = cached(rows, TargetCache(copied.folder))
    with pytest.raises(
        ValueError, match=rf"with codes from \d+ to {TOKENIZER.codebook_size}, expected 0 to .*: delete it"
    ):
        clips[0]
    for number in (2, 4):
        with pytest.raises(ValueError, match=r"with scores that are not finite, expected finite ones: delete it"):
            clips[number]


def test_half_a_file_is_refused_before_it_is_read(copied):
    path = sorted(copied.folder.glob("*.arrow"))[1]
    for size in (path.stat().st_size // 2, 0):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=rf"Got a damaged file {path.name} in .*: delete the file"):
            TargetCache(copied.folder)
    shutil.copy(sorted(copied.folder.glob("*.arrow"))[0], path)
    rewrite(copied, lambda rows: rows.select([0]), number=1)
    with pytest.raises(ValueError, match=rf"Got a damaged file {path.name} in .*: delete the file"):
        TargetCache(copied.folder)


def test_a_flipped_bit_is_found_or_changes_nothing(rows, cache, copied):
    """In any of the places of a file, a hundred of them; Arrow's own description of its columns is among them."""
    path = sorted(copied.folder.glob("*.arrow"))[0]
    whole, found = path.read_bytes(), []
    expected = [cached(rows, cache)[number] for number in (0, 1)]
    draw = random.Random(0)
    for place in [*range(0, 1200, 17), *(draw.randrange(len(whole)) for _ in range(40))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        part = path.with_suffix(".part")
        part.write_bytes(damaged)
        os.replace(part, path)  # former files are still mapped
        try:
            clips = cached(rows, TargetCache(copied.folder))
            for number in (0, 1):
                assert_same(clips[number], expected[number])
        except ValueError as error:
            found.append(str(error))
    assert len(found) > 50
    assert all(f"Got a damaged file {path.name}" in message or "with video " in message for message in found)


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(rows, cache, tokenizer, tmp_path):
    full = tmp_path / "epoch_00000_row_000000002.arrow.part"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        write_cache(tmp_path, rows, tokenizer)
    assert sentence_of(raised.value).startswith("Got a full disk (")
    assert [path.name for path in sorted(tmp_path.glob("*.arrow"))] == ["epoch_00000_row_000000000.arrow"]
    full.unlink(missing_ok=True)
    assert_same(write_cache(tmp_path, rows, tokenizer).epochs[0].to_dict(), cache.epochs[0].to_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 10**15}, r"Got 3 files in the target cache .*, expected 500000000000000: run"),
        (
            {"num_epochs": 10**12, "clips_per_shard": 1},
            r"Got 3 files in the target cache .*, expected 6000000000000: run",
        ),
        ({"clips_per_shard": 0}, r"Got a damaged .*manifest.json, expected .*: restore it"),
        ({"rows": -1}, r"Got a damaged .*manifest.json, expected .*: restore it"),
        ({"grid_size": [4, 4]}, r"Got a damaged .*manifest.json, expected .*: restore it"),
        ({"rows": "6"}, r"Got a damaged .*manifest.json, expected .*: restore it"),
        (None, r"Got a damaged .*manifest.json, expected .*: restore it"),
    ],
)
def test_a_damaged_manifest_is_refused_at_once(fields, message, copied):
    path = copied.folder / "manifest.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if fields is None else json.dumps({**json.loads(text), **fields}))
    with pytest.raises(ValueError, match=message):
        TargetCache(copied.folder)


def test_codes_beyond_int32_come_back(rows, tmp_path):
    torch.manual_seed(0)
    levels = (8,) * 11
    tokenizer = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), "levels": levels}))
    config = LVMAEConfig(**{**MODEL.to_dict(), "levels": levels})
    clips = ByteClips(rows, PROCESSOR, MODEL.num_frames)
    maker = TargetMaker(TargetBuilder(config, PROCESSOR, tokenizer))
    manifest = make_manifest(clips, maker, 1, 6)
    begin_cache(tmp_path, manifest)
    write_targets(tmp_path, clips, maker, manifest)
    made = maker(clips[0]["pixel_values_videos"].unsqueeze(0))["code_indices"][0]
    assert made.max() > 2**31
    assert torch.equal(cached(rows, TargetCache(tmp_path))[0]["code_indices"], made)


def test_targets_are_the_same_under_autocast(rows, tokenizer):
    """Training builds them outside of it, a script may not."""
    clips = ByteClips(rows, PROCESSOR, MODEL.num_frames)
    maker = TargetMaker(TargetBuilder(MODEL, PROCESSOR, tokenizer))
    batch = torch.stack([clips[number]["pixel_values_videos"] for number in range(2)])
    inputs = {"pixel_values_videos": batch, "bool_masked_pos": torch.zeros(2, 64, dtype=torch.bool)}
    inputs["noise"] = torch.rand(2, 64)
    made, built = maker(batch), maker.builder(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        again, built_again = maker(batch), maker.builder(inputs)
    assert_same(again, made)
    assert_same(built_again, built)


@pytest.mark.slow
def test_what_bfloat16_would_change():
    """The default tokenizer with random weights: why no option makes targets under autocast."""
    tokenizer = FSQMagViTModel(FSQMagViTConfig()).eval()
    brightness, noise = torch.rand(2, 16, 3, 1, 1), torch.rand(2, 16, 3, 112, 112)
    with torch.no_grad():
        exact = tokenizer.encode((brightness + noise) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = tokenizer.encode((brightness + noise) / 2)
    tokens = (rounded.code_indices != exact.code_indices).float().mean().item()
    channels = (rounded.codes - exact.codes != 0).float().mean().item()
    best, second = (output.importance_scores.topk(157, dim=1).indices for output in (exact, rounded))
    kept = sum(torch.isin(*pair).float().mean().item() for pair in zip(best, second)) / 2
    print(
        f"other codes: {tokens:.1%} of tokens, {channels:.1%} of channels; of the best tenth, {kept:.1%} are the same"
    )
    assert 0.03 < tokens < 0.15
    assert 0.9 < kept < 1


def test_a_tokenizer_whose_scores_are_not_finite_writes_nothing(rows, tmp_path):
    broken = FSQMagViTModel(TOKENIZER)
    torch.nn.init.constant_(broken.scorer.conv1.weight, float("nan"))
    with pytest.raises(
        ValueError, match=r"Got targets of .*\.mp4 with scores that are not finite, .*: check the tokenizer's"
    ):
        write_cache(tmp_path / "cache", rows, broken)
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_several_clips_of_a_video_share_its_targets(rows, cache):
    clips = cached(rows, cache, training=True, reading=VideoReading(num_clips=2))
    one, two = clips.__getitems__([4])
    assert torch.equal(one["code_indices"], two["code_indices"])
    assert not torch.equal(one["bool_masked_pos"], two["bool_masked_pos"])
    assert not torch.equal(one["visible_tubelets"], two["visible_tubelets"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": FrameSampling(frame_stride=2)}, r"frame_stride: None, expected 2: run scripts/cache_targets.py"),
        (
            {"training": True, "augmentation": ClipAugmentation(horizontal_flip=True)},
            r"horizontal_flip: False, expected True",
        ),
        ({"grid_size": (4, 2, 8)}, r"grid_size: \[4, 4, 4\], expected \[4, 2, 8\]"),
    ],
)
def test_other_clips_are_refused(options, message, rows, cache):
    with pytest.raises(ValueError, match=rf"Got a target cache \(.*\) with {message}"):
        cached(rows, cache, **options)


def test_another_seed_is_refused_where_clips_are_drawn(rows, cache, tokenizer, tmp_path):
    assert len(cached(rows, cache, training=True, seed=9)) == 6  # nothing drawn but masks
    drawn = write_cache(tmp_path, rows, tokenizer, **DRAWN)
    with pytest.raises(ValueError, match="with draws_of_seed: 5, expected 9"):
        cached(rows, drawn, **{**DRAWN, "seed": 9})
    with pytest.raises(ValueError, match="with num_clips: 1, expected 2"):
        cached(rows, drawn, reading=VideoReading(num_clips=2), **DRAWN)


def test_other_sizes_frames_videos_models_and_tokenizers_are_refused(rows, cache, tokenizer):
    small = processor_for(MODEL, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"with processor: .*0.485.*, expected .*0.5, 0.5, 0.5"):
        CachedVideoClips(rows, small, MODEL.num_frames, cache=cache, **MASKS)
    with pytest.raises(ValueError, match="with num_frames: 8, expected 4"):
        CachedVideoClips(rows, PROCESSOR, 4, cache=cache, **MASKS)
    assert len(cached(rows.select(range(4)), cache)) == 4
    with pytest.raises(ValueError, match=r"with video 0: .*\.mp4, expected .*\.mp4"):
        cached(rows.select([1, 0, 2]), cache)
    more = datasets.concatenate_datasets([rows, rows])
    with pytest.raises(ValueError, match="with at least as many videos: 6, expected 12"):
        cached(more, cache)
    cache.check_tokenizer(tokenizer)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=r"with the tokenizer's weights: .*, expected .*: run"):
        cache.check_tokenizer(FSQMagViTModel(TOKENIZER))
    changed = FSQMagViTModel(FSQMagViTConfig(**{**TOKENIZER.to_dict(), "keep_ratio": 0.5}))
    with pytest.raises(ValueError, match=r"with the tokenizer's config: .*, expected"):
        cache.check_tokenizer(changed)
    with pytest.raises(ValueError, match=r"with levels: \[8, 8, 8, 8, 8, 8\], expected \[8, 5\]"):
        cache.check_model(LVMAEConfig(**{**MODEL.to_dict(), "levels": (8, 5)}))
    with pytest.raises(ValueError, match=r"Got target_type='latents' and the target cache .*, expected 'codes'"):
        cache.check_model(LVMAEConfig(**{**MODEL.to_dict(), "target_type": "latents"}))
    with pytest.raises(ValueError, match=r"with scores \(of decoder_mask='flow'\): learned, expected flow"):
        cache.check_model(LVMAEConfig(**{**MODEL.to_dict(), "decoder_mask": "flow"}))


def test_what_cannot_be_cached_is_refused(rows, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"Got scores='learned' and tokenizer=None, expected one of .*and a tokenizer"):
        TargetMaker(TargetBuilder(MODEL, PROCESSOR))
    with pytest.raises(ValueError, match=r"Got scores='random' .* expected one of"):
        TargetMaker(TargetBuilder(MODEL, PROCESSOR, tokenizer), "random")
    with pytest.raises(
        ValueError, match=r"grid of \(4, 4, 4\) tokens and a model with \(4, 2, 2\) .*expected the same"
    ):
        TargetBuilder(LVMAEConfig(**{**MODEL.to_dict(), "patch_size": 16}), PROCESSOR, tokenizer)
    with pytest.raises(ValueError, match=r"Got num_epochs=3 and clips without random draws, expected 1"):
        write_cache(tmp_path, rows, tokenizer, num_epochs=3)
    with pytest.raises(ValueError, match=r"Got num_clips=2, expected 1: cache more epochs"):
        write_cache(tmp_path, rows, tokenizer, training=True, reading=VideoReading(num_clips=2))
    with pytest.raises(ValueError, match=r"Got no target cache in .* make it with scripts/cache_targets.py"):
        TargetCache(tmp_path / "nowhere")


def test_a_cache_is_gone_on_with_only_as_it_was_begun(rows, tokenizer, tmp_path):
    write_cache(tmp_path, rows, tokenizer)
    with pytest.raises(ValueError, match=r"begun with clips_per_shard=2, expected 3: use the options that began it"):
        write_cache(tmp_path, rows, tokenizer, clips_per_shard=3)
    next(iter(tmp_path.glob("*.arrow"))).unlink()
    with pytest.raises(
        ValueError, match=r"Got 2 files in the target cache .*, expected 3: run scripts/cache_targets.py"
    ):
        TargetCache(tmp_path)
    (tmp_path / "other.arrow").touch()
    with pytest.raises(ValueError, match=r"Got 3 files in the target cache .*, expected 3: run"):
        TargetCache(tmp_path)
    (tmp_path / "other.arrow").unlink()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    write_cache(tmp_path, rows, tokenizer)
    assert {path: path.stat().st_mtime_ns for path in times} == times  # only what was missing is written
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(
        json.dumps({name: value for name, value in manifest.items() if name != "dtype"})
    )
    with pytest.raises(ValueError, match=r"begun with dtype=None, expected torch\.float32"):
        write_cache(tmp_path, rows, tokenizer)


def test_the_files_of_a_cache_hold_every_row_of_every_epoch_once():
    manifest = {"rows": 5, "clips_per_shard": 2, "num_epochs": 2}
    shards = list_shards(manifest)
    assert [(shard.epoch, *shard.rows) for shard in shards] == [
        *((0, 0, 1), (0, 2, 3), (0, 4), (1, 0, 1), (1, 2, 3), (1, 4)),
    ]
    assert len({shard.name for shard in shards}) == count_shards(manifest) == 6


# The scripts, killed and shared


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return str(path)


FIELDS = ["image_size", "patch_size", "num_frames", "hidden_size", "num_hidden_layers", "num_attention_heads"]
FIELDS += ["intermediate_size", "mask_ratio", "decoder_mask_ratio", "decoder_random_ratio", "decoder_hidden_size"]
FIELDS += ["decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size"]
OVERRIDES = json.dumps({name: getattr(MODEL, name) for name in FIELDS})
DATA = ["--dataset_name", str(CLIPS), "--eval_split", "test", "--max_train_samples", "8", "--max_eval_samples", "4"]
DATA += ["--config_overrides", OVERRIDES, "--min_crop_scale", "0.5", "--seed", "3"]


def cache_command(tokenizer, folder):
    options = ["--tokenizer", tokenizer, "--output_dir", str(folder), "--num_epochs", "2", "--clips_per_shard", "3"]
    return [*DATA, *options, "--batch_size", "2"]


def run_script(monkeypatch, name, command):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *command])
    load_script(name).main()


def contents(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert sum(name.endswith(".arrow") for name in files) == 2 * 3 + 2
    return files


@pytest.fixture
def whole_cache(saved_tokenizer, tmp_path, monkeypatch, capsys):
    run_script(monkeypatch, "cache_targets", cache_command(saved_tokenizer, tmp_path / "whole"))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [entry["clips"] for entry in printed] == [16, 4]
    assert all(entry["clips_per_second"] > 0 and entry["bytes_per_clip"] > 0 for entry in printed)
    return tmp_path / "whole"


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


def test_several_clips_of_a_video_cannot_be_cached_where_each_is_drawn(saved_tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Got num_clips=2 with random starts.*--num_epochs"):
        run_script(
            monkeypatch, "cache_targets", [*cache_command(saved_tokenizer, tmp_path / "cache"), "--num_clips", "2"]
        )
    assert not (tmp_path / "cache").exists()


def test_a_killed_cache_goes_on_and_ends_as_if_it_had_not_been(whole_cache, saved_tokenizer, tmp_path, monkeypatch):
    """SIGKILL in the middle of the second file; finished files are not touched again."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "import torch\n"
        f"sys.path[:0] = {[str(TESTS), str(Path(__file__).parent)]!r}\n"
        "from builders import load_script\n"
        "from transformers_lvmae.targets.cache_writing import TargetMaker\n"
        "torch.use_deterministic_algorithms(True, warn_only=True)\n"
        "make, calls = TargetMaker.__call__, []\n"
        "def count(self, clips):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return make(self, clips)\n"
        "TargetMaker.__call__ = count\n"
        f"sys.argv = ['cache_targets.py', *{cache_command(saved_tokenizer, tmp_path / 'killed')!r}]\n"
        "load_script('cache_targets').main()\n"
    )
    run = subprocess.run([sys.executable, str(script)], env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.arrow")}
    assert len(done) == 1
    assert len(list((tmp_path / "killed").rglob("*.arrow.part"))) == 1
    run_script(monkeypatch, "cache_targets", cache_command(saved_tokenizer, tmp_path / "killed"))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert contents(tmp_path / "killed") == contents(whole_cache)


def test_two_processes_write_the_cache_of_one(whole_cache, saved_tokenizer, tmp_path):
    """Byte for byte, over gloo."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, str(SCRIPTS / "cache_targets.py"), *cache_command(saved_tokenizer, tmp_path / "two")]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert contents(tmp_path / "two") == contents(whole_cache)


def test_pre_training_reads_a_cache_as_it_would_make_one(whole_cache, saved_tokenizer, tmp_path, monkeypatch):
    """scripts/pretrain.py with and without the cache, with random crops; and the tokenizer's directory is compared."""
    options = [
        *DATA,
        "--report_to",
        "none",
        "--num_train_epochs",
        "2",
        "--per_device_train_batch_size",
        "4",
        "--use_cpu",
        "true",
    ]
    options += ["--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true"]
    histories = []
    for name, source in (("fly", ["--tokenizer", saved_tokenizer]), ("cached", ["--target_cache", str(whole_cache)])):
        run_script(monkeypatch, "pretrain", [*options, *source, "--output_dir", str(tmp_path / name)])
        histories.append(json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"])
    losses = [[entry.get("loss", entry.get("eval_loss")) for entry in history] for history in histories]
    assert len([loss for loss in losses[0] if loss is not None]) >= 4
    assert losses[1] == losses[0]
    other = tmp_path / "other"
    torch.manual_seed(4)
    FSQMagViTModel(TOKENIZER).save_pretrained(other)
    command = [
        *options,
        "--tokenizer",
        str(other),
        "--target_cache",
        str(whole_cache),
        "--output_dir",
        str(tmp_path / "no"),
    ]
    with pytest.raises(ValueError, match="with the tokenizer's weights"):
        run_script(monkeypatch, "pretrain", command)


def test_broken_videos_of_both_splits_are_left_out_named_and_counted_in_evaluation(
    saved_tokenizer, tmp_path, monkeypatch
):
    """scripts/cache_targets.py, then scripts/pretrain.py on its cache."""
    shutil.copytree(CLIPS, tmp_path / "data")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "clip_00001.mp4").write_bytes(b"no video")
    data = [str(tmp_path / "data") if option == str(CLIPS) else option for option in DATA]
    cache = ["--tokenizer", saved_tokenizer, "--output_dir", str(tmp_path / "cache"), "--num_workers", "1"]
    run_script(monkeypatch, "cache_targets", [*data, *cache])
    named = json.loads((tmp_path / "cache" / "broken_videos.json").read_text())
    assert [Path(name).parts[-2:] for name in named] == [("test", "clip_00001.mp4"), ("train", "clip_00001.mp4")]
    for split, number in (("train", 8), ("test", 4)):
        shown = TargetCache(tmp_path / "cache" / split).epochs[0].with_format(None)["video"]
        assert [not name for name in shown] == [row == 1 for row in range(number)]
    options = ["--report_to", "none", "--max_steps", "2", "--use_cpu", "true", "--disable_tqdm", "true"]
    options += ["--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "2"]
    command = [*data, *options, "--target_cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    run_script(monkeypatch, "pretrain", command)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert next(entry["eval_samples_skipped"] for entry in history if "eval_loss" in entry) == 1
