"""The encoder, the masked autoencoder and the classifier: against VideoMAE, naive code, and other settings of the same model."""

import dataclasses
import json
import math

import pytest
import torch
from builders import initialize_again, tiny_config
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from transformers_lvmae.models.masking import (
    adaptive_decoder_mask,
    gather_tubelets,
    random_tube_mask,
    split_tubelets,
    topk_mask,
    tube_visible_count,
)
from transformers_lvmae.models.positions import position_embeddings, sinusoidal_positions
from transformers_lvmae.sharing.convert_videomae import convert_config, convert_state_dict
from transformers_lvmae.training.arguments import ModelArguments


MODELS = {
    "encoder": (LVMAEModel, AutoModel, {}),
    "encoder_without_norm": (LVMAEModel, AutoModel, {"final_layer_norm": False, "qv_bias": False}),
    "codes": (LVMAEForPreTraining, AutoModelForPreTraining, {}),
    "flattened": (LVMAEForPreTraining, AutoModelForPreTraining, {"position_embedding": "flattened"}),
    "levels": (LVMAEForPreTraining, AutoModelForPreTraining, {"target_type": "levels"}),
    "pixels": (LVMAEForPreTraining, AutoModelForPreTraining, {"target_type": "pixels"}),
    "mean": (LVMAEForVideoClassification, AutoModelForVideoClassification, {"tube_drop_ratio": 0}),
    "class_attention": (
        LVMAEForVideoClassification,
        AutoModelForVideoClassification,
        {"tube_drop_ratio": 0, "pooling": "class_attention"},
    ),
    "chosen": (
        LVMAEForVideoClassification,
        AutoModelForVideoClassification,
        {"tube_drop_ratio": 0, "token_keep_ratio": 0.25, "scorer_patch_size": 4},
    ),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, **overrides):
    """A model in eval mode whose biases and norms are not at their trivial start."""
    model_class, _, fields = MODELS[kind]
    model = model_class(tiny_config(**{**fields, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_masks(rows: int, config: LVMAEConfig, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden and decoded positions, different in every row, with equal counts."""
    noise = torch.rand(2, rows, config.seq_length, generator=torch.Generator().manual_seed(seed))
    return topk_mask(noise[0], config.seq_length // 2), topk_mask(noise[1], config.seq_length // 4)


def inputs_for(model, rows: int = 2) -> dict[str, torch.Tensor]:
    config = model.config
    inputs = {
        "pixel_values_videos": torch.randn(rows, config.num_frames, config.num_channels, *config.frame_size),
    }
    if isinstance(model, LVMAEForVideoClassification):
        return {**inputs, "labels": torch.arange(rows) % config.num_labels}
    masked, decoded = random_masks(rows, config, seed=1)
    inputs["bool_masked_pos"] = masked
    if isinstance(model, LVMAEForPreTraining):
        inputs["bool_decoded_pos"] = decoded
        if config.target_type != "pixels":
            half = torch.tensor(config.levels) // 2
            below = torch.rand(rows, config.seq_length, len(config.levels)) * torch.tensor(config.levels)
            inputs["target_codes"] = (below.floor() - half) / half
    return inputs


def fixed_scores(kind: str) -> dict[str, torch.Tensor]:
    """Scores that no draw and no rounding changes, for a model that chooses tokens."""
    return {"importance_scores": torch.arange(128.0).view(2, 64)} if kind == "chosen" else {}


def main_output(outputs) -> torch.Tensor:
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def run(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(**inputs))


def scalar(outputs) -> torch.Tensor:
    """Something to differentiate: the loss, or for the encoder a number that depends on every output."""
    if hasattr(outputs, "loss"):
        return outputs.loss
    return (outputs.last_hidden_state * torch.arange(outputs.last_hidden_state.shape[-1])).square().mean()


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    scalar(model(**inputs)).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


# Every class


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_saved_and_loaded_gives_identical_outputs(kind, attention, tmp_path):
    model = build(kind, attn_implementation=attention)
    inputs = inputs_for(model)
    model.save_pretrained(tmp_path)
    loaded, report = MODELS[kind][1].from_pretrained(tmp_path, attn_implementation=attention, output_loading_info=True)
    assert type(loaded) is type(model)
    assert loaded.config._attn_implementation == model.config._attn_implementation == attention
    assert not any(report.values())
    assert torch.equal(run(model, inputs), run(loaded, inputs))
    if kind not in ("encoder", "encoder_without_norm"):
        assert torch.equal(model(**inputs).loss, loaded(**inputs).loss)


@every_model
def test_eager_equals_sdpa(kind):
    model = build(kind)
    inputs = inputs_for(model)
    outputs = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        outputs.append(run(model, inputs))
    torch.testing.assert_close(*outputs, atol=2e-6, rtol=1e-5)


@pytest.mark.slow  # flex attention is compiled, which takes a minute
@every_model
def test_flex_attention_equals_sdpa(kind):
    model = build(kind, hidden_size=64, decoder_hidden_size=32)  # flex wants heads of 16 numbers or more
    inputs = inputs_for(model)
    expected = run(model, inputs)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(run(model, inputs), expected, atol=2e-6, rtol=1e-5)


@every_model
def test_built_on_meta_and_initialized_equals_built_directly(kind):
    """From different memory (NaN on one side) the same seed gives the same weights: initialization leaves nothing out."""
    model_class, _, fields = MODELS[kind]
    direct = model_class(tiny_config(**fields))
    with torch.device("meta"):
        emptied = model_class(tiny_config(**fields))
    emptied.to_empty(device="cpu")
    assert all(parameter.isnan().all() for parameter in emptied.parameters())
    for model in (direct, emptied):
        initialize_again(model)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, emptied.state_dict()[name]), name


@every_model
def test_gradient_checkpointing_changes_nothing(kind):
    model = build(kind).train()
    inputs = {**inputs_for(model), **fixed_scores(kind)}
    plain = gradients(model, inputs)
    for reentrant in (False, True):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        checkpointed = gradients(model, inputs)
        assert plain.keys() == checkpointed.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


@every_model
def test_a_sample_alone_equals_the_sample_in_its_batch(kind):
    """With masks that differ between the rows: were a position taken from another row, the two would differ."""
    model = build(kind)
    inputs = inputs_for(model, rows=3)
    together = run(model, inputs)
    for row in range(3):
        alone = run(model, {name: tensor[row : row + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone, together[row : row + 1], atol=2e-6, rtol=1e-5)


@every_model
def test_nothing_leaks_between_samples(kind):
    model = build(kind)
    inputs = inputs_for(model, rows=2)
    inputs["pixel_values_videos"].requires_grad_()
    main_output(model(**inputs))[0].sum().backward()
    gradient = inputs["pixel_values_videos"].grad
    assert gradient[0].any()
    assert not gradient[1].any()


@every_model
def test_every_parameter_gets_a_gradient(kind):
    model = build(kind).train()
    for name, gradient in gradients(model, inputs_for(model)).items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@every_model
def test_hidden_states_and_attentions_are_those_of_the_encoder(kind):
    model = build(kind, attn_implementation="eager")
    inputs = inputs_for(model)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        encoder = getattr(model, "lvmae", model)
        clips, masked = inputs["pixel_values_videos"], inputs.get("bool_masked_pos")
        visible = None if masked is None else encoder.index_visible(clips, masked)
        states = encoder.embeddings(
            clips, visible if encoder.token_selector is None else encoder.choose_visible(clips)[0]
        )
        expected = [states]
        for layer in encoder.encoder.layers:
            states = layer(states)
            expected.append(states)
    assert len(outputs.hidden_states) == 3
    for recorded, state in zip(outputs.hidden_states, expected):
        torch.testing.assert_close(recorded, state)
    assert len(outputs.attentions) == 2
    for weights, state, layer in zip(outputs.attentions, expected, encoder.encoder.layers):
        normed = layer.layer_norm1(state)
        query, key = (
            p(normed).unflatten(-1, (4, 8)).transpose(1, 2) for p in (layer.attention.q_proj, layer.attention.k_proj)
        )
        torch.testing.assert_close(weights, (query @ key.mT / 8**0.5).softmax(dim=-1))


@every_model
def test_bfloat16_stays_close_to_float32(kind):
    model = build(kind)
    inputs = {**inputs_for(model), **fixed_scores(kind)}
    exact = run(model, inputs)
    rounded = run(model.bfloat16(), inputs)
    assert rounded.dtype == torch.bfloat16
    assert (
        rounded.float() - exact
    ).norm() < 2**-6 * exact.norm()  # numbers are rounded to 2**-8; 0.3 to 1.3 % were seen


@pytest.mark.parametrize("num_frames", [256, 512, 1024])
def test_long_clips_have_as_many_tokens_as_short_ones(num_frames):
    short = LVMAEConfig(token_keep_ratio=0.25, token_random_ratio=0.05)
    long = short.for_frames(num_frames)
    assert short.num_frames == 128
    assert long.num_frames == num_frames
    assert long.position_grid == short.position_grid
    visible = [tube_visible_count(config.grid_size, config.mask_ratio) for config in (short, long)]
    assert visible[1] == pytest.approx(visible[0], rel=0.21)  # whole tubes: 20 of 196, and 2.5 at 1,024 frames
    assert long.token_budget == pytest.approx(short.token_budget, abs=1)
    kept = [config.kept_token_counts(config.seq_length) for config in (short, long)]
    assert kept[0] == pytest.approx(kept[1], abs=1)
    assert LVMAEConfig().for_frames(num_frames).token_keep_ratio == 1
    with pytest.raises(StrictDataclassFieldValidationError, match="token_keep_ratio"):
        LVMAEConfig(token_keep_ratio=0.6).for_frames(64)  # it would need more tokens than the clip has


@every_model
@pytest.mark.parametrize(
    ("frames", "size", "channels"), [(2, (32, 32), 3), (14, (16, 40), 3), (8, (32, 32), 1), (4, (24, 8), 4)]
)
def test_other_clips_need_no_surgery(kind, frames, size, channels):
    """The weights fit any length and size; what comes out is what a model configured for it gives."""
    fields = {"num_channels": channels, "image_mean": (0.5,) * channels, "image_std": (0.2,) * channels}
    model = build(kind, **fields)
    trained = {"position_grid_size": model.config.grid_size}
    fitting = build(kind, **fields, num_frames=frames, image_size=size, **trained)
    fitting.load_state_dict(model.state_dict())
    inputs = inputs_for(fitting)
    assert torch.equal(run(model, inputs), run(fitting, inputs))


# Geometry and positions


def test_a_config_s_field_is_read_by_its_former_name_too(tmp_path):
    """`rebuild_activations` of version 0.1: as a keyword, in a file, and among the scripts' overrides."""
    assert LVMAEConfig().recompute_activations is True
    former = LVMAEConfig(rebuild_activations=False)
    assert former.recompute_activations is former.rebuild_activations is False
    (tmp_path / "config.json").write_text('{"model_type": "lvmae", "rebuild_activations": false}')
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.recompute_activations is False
    assert AutoConfig.from_pretrained(tmp_path, rebuild_activations=True).recompute_activations is True
    loaded.save_pretrained(tmp_path)
    assert "rebuild_activations" not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path).recompute_activations is False
    overrides = ModelArguments(config_overrides='{"rebuild_activations": false}').overrides(LVMAEConfig)
    assert LVMAEConfig(**overrides).recompute_activations is False


def test_default_config_is_the_papers_base_model():
    config = LVMAEConfig()
    assert config.grid_size == (64, 14, 14)
    assert config.seq_length == 12_544
    assert config.decoder_token_counts(12_544) == (1254, 627)
    assert config.token_budget == 1881
    assert config.target_size == 6
    assert LVMAEConfig(target_type="pixels").target_size == 1536
    assert LVMAEConfig(target_type="latents").target_size == 6
    assert LVMAEConfig(target_type="levels", levels=(8, 5, 5)).target_size == 18


@pytest.mark.parametrize(
    ("kind", "counts", "budget"),
    [
        ("none", None, 64 * 176),
        ("random", (1881, 0), 1881),
        ("uniform", (1881, 0), 1881),
        ("adaptive", (1881, 0), 1881),
        ("flow", (1254, 627), 1881),
        ("motion", (1254, 627), 1881),
        ("everest", (1254, 627), 1881),
    ],
)
def test_all_decoder_masks_have_one_budget_but_none(kind, counts, budget):
    config = LVMAEConfig(decoder_mask=kind)
    assert config.token_budget == budget
    assert counts is None or config.decoder_token_counts(12_544) == counts


@pytest.mark.parametrize(
    ("frames", "tokens", "budget"), [(16, 1568, 234), (32, 3136, 469), (64, 6272, 940), (96, 9408, 1410)]
)
def test_token_budget_is_ten_and_five_percent_each_rounded_down(frames, tokens, budget):
    config = LVMAEConfig(num_frames=frames)
    assert config.seq_length == tokens
    assert config.token_budget == tokens * 10 // 100 + tokens * 5 // 100 == budget


def test_token_counts_are_whole_percentages_exactly():
    """In floating point 1 - 0.9 is under 0.1 and 0.29 * 100 under 29: neither may cost a token."""
    for percent in range(1, 50):
        config = tiny_config(decoder_mask_ratio=1 - percent / 100, decoder_random_ratio=percent / 100)
        for tokens in (100, 1000, 1568, 12_544):
            assert config.decoder_token_counts(tokens) == (tokens * percent // 100, tokens * percent // 100)


@pytest.mark.parametrize(
    ("size", "encoder", "decoder"),
    [
        ("small", (384, 12, 6, 1536), (192, 4, 3, 768)),
        ("base", (768, 12, 12, 3072), (384, 4, 6, 1536)),
        ("large", (1024, 24, 16, 4096), (512, 4, 8, 2048)),
        ("huge", (1280, 32, 16, 5120), (512, 4, 8, 2048)),
    ],
)
def test_sizes_are_videomaes(size, encoder, decoder):
    config = LVMAEConfig.from_size(size, num_frames=16)
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert tuple(getattr(config, name) for name in fields) == encoder
    assert tuple(getattr(config, f"decoder_{name}") for name in fields) == decoder
    assert config.num_frames == 16


def test_config_survives_json(tmp_path):
    config = tiny_config(image_size=(32, 48), drop_path_rate=0.1, num_labels=2, id2label={0: "a", 1: "b"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LVMAEConfig
    for field in dataclasses.fields(LVMAEConfig):
        if field.name == "transformers_version":
            continue  # saving writes it
        if field.name == "position_grid_size":
            assert loaded.position_grid_size == [4, 4, 6]  # a saved model's positions stay as they are
            continue
        before, after = getattr(config, field.name), getattr(loaded, field.name)
        assert (list(before) if isinstance(before, tuple) else before) == after, field.name
    assert loaded.grid_size == config.grid_size == (4, 4, 6)


@pytest.mark.parametrize("size", [32, 18])
def test_positions_are_videomaes_table(size):
    table = get_sinusoid_encoding_table(300, size)[0]
    assert torch.equal(sinusoidal_positions(torch.arange(300), size), table)
    chosen = torch.tensor([[299, 0], [7, 8]])
    assert torch.equal(sinusoidal_positions(chosen, size), table[chosen])


def test_positions_are_exact_at_the_end_of_a_long_clip():
    row = sinusoidal_positions(torch.tensor(12_543), 768)
    for channel in (0, 1, 2, 3, 380, 381, 766, 767):
        angle = 12_543 / 10_000 ** (2 * (channel // 2) / 768)
        exact = math.cos(angle) if channel % 2 else math.sin(angle)
        assert abs(row[channel].item() - exact) < 1e-7


def naive_factorized(time: float, row: float, column: float, trained: tuple[int, int, int], size: int) -> list[float]:
    """One token's vector, number by number."""
    third, vector = size // 6 * 2, []
    for place, length, width in (
        (time, trained[0], size - 2 * third),
        (row, trained[1], third),
        (column, trained[2], third),
    ):
        for pair in range(width // 2):
            radians = (math.pi / 2 / length) ** (pair / max(width // 2 - 1, 1))
            vector += [math.sin(place * radians), math.cos(place * radians)]
    return vector


def test_factorized_positions_are_sines_of_each_axis():
    config = tiny_config(num_frames=16, image_size=(32, 48))  # 8 x 4 x 6 tokens
    for size in (6, 16, 32, 50):
        vectors = position_embeddings(config, torch.arange(8 * 4 * 6).view(2, 96), None, size).flatten(0, 1)
        for token in (0, 5, 6, 100, 191):
            place = token // 24, token // 6 % 4, token % 6
            torch.testing.assert_close(vectors[token], torch.tensor(naive_factorized(*place, config.grid_size, size)))


def test_at_another_size_a_token_keeps_its_place():
    """Twice as many rows and half as many slots as the grid (8, 4, 6) of the weights: places are those of the tokens' centers."""
    config = tiny_config(num_frames=16, image_size=(32, 48))
    vectors = position_embeddings(config, torch.arange(4 * 8 * 6), (4, 8, 6), 32)
    for token in (0, 6, 47, 48, 191):
        place = 2 * (token // 48) + 0.5, (token // 6 % 8) / 2 - 0.25, token % 6
        torch.testing.assert_close(vectors[token], torch.tensor(naive_factorized(*place, (8, 4, 6), 32)))


def test_flattened_positions_are_interpolated_between_trained_ones():
    config = tiny_config(num_frames=16, image_size=(32, 48), position_embedding="flattened")
    table = sinusoidal_positions(torch.arange(8 * 4 * 6), 32).view(8, 4, 6, 32)
    same = position_embeddings(config, torch.arange(8 * 4 * 6), (8, 4, 6), 32)
    assert torch.equal(same, table.flatten(0, 2))
    vectors = position_embeddings(config, torch.arange(4 * 8 * 6), (4, 8, 6), 32).view(4, 8, 6, 32)
    slots = (table[2] + table[3]) / 2  # slot 1 of 4 lies between slots 2 and 3 of 8
    torch.testing.assert_close(vectors[1, 5, 4], 0.75 * slots[2, 4] + 0.25 * slots[3, 4])
    torch.testing.assert_close(
        vectors[1, 0, 4], 1.25 * slots[0, 4] - 0.25 * slots[1, 4]
    )  # past the edge, it goes on straight


def shares_read_by_a_linear_map(config: LVMAEConfig, size: int) -> list[float]:
    """Shares of the variance of time, row and column that ridge regression explains at 1,000 of 4,000 random tokens."""
    _, height, width = config.grid_size
    tokens = torch.randint(config.seq_length, (4000,), generator=torch.Generator().manual_seed(0))
    places = torch.stack([tokens // (height * width), tokens // width % height, tokens % width], dim=1).double()
    vectors = position_embeddings(config, tokens, None, size).double()
    inputs = torch.cat([vectors, torch.ones(4000, 1)], dim=1)
    fitted, tested = inputs[:3000], inputs[3000:]
    ridge = fitted.T @ fitted + 1e-4 * 3000 * torch.eye(size + 1)
    errors = tested @ torch.linalg.solve(ridge, fitted.T @ places[:3000]) - places[3000:]
    return (1 - errors.square().mean(dim=0) / places[3000:].var(dim=0)).tolist()


@pytest.mark.parametrize("size", [64, 768])
def test_a_linear_map_reads_time_row_and_column_from_factorized_positions(size):
    """From flattened ones it reads time, and row and column neither in a narrow nor in a wide model."""
    for slots, side in ((2, 8), (32, 8), (64, 14), (512, 14)):
        sizes = {"num_frames": 2 * slots, "image_size": 16 * side}
        assert min(shares_read_by_a_linear_map(LVMAEConfig(**sizes), size)) > 0.999
    flattened = LVMAEConfig(num_frames=128, position_embedding="flattened")
    assert max(shares_read_by_a_linear_map(flattened, size)[1:]) < 0.2


@pytest.mark.parametrize("kind", ["factorized", "flattened"])
def test_a_picture_of_twice_the_size_has_nearly_the_same_features(kind):
    """Patches of one color stay patches of one color: only positions tell the two pictures' tokens apart."""
    torch.manual_seed(0)
    model = LVMAEModel(tiny_config(image_size=64, position_embedding=kind, num_frames=4)).eval()
    colors = torch.randn(1, 4, 3, 8, 8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # as after training, attention depends on content and positions
        small, large = (
            model(colors.repeat_interleave(size, dim=-1).repeat_interleave(size, dim=-2)) for size in (8, 16)
        )
    assert torch.cosine_similarity(small.pooler_output, large.pooler_output) > 0.999
    tokens = small.last_hidden_state[0]
    parts = large.last_hidden_state.view(2, 8, 2, 8, 2, 32).mean(dim=(2, 4)).flatten(0, 2)
    assert (parts - tokens).square().mean() < 0.05 * tokens.var(dim=0).mean()


@pytest.mark.parametrize("override", [{"image_size": 64}, {"num_frames": 16}, {"tubelet_size": 1}])
def test_a_saved_model_s_positions_keep_their_grid(override, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, **override)
    assert loaded.grid_size != (4, 4, 4)
    assert tuple(loaded.position_grid_size) == loaded.position_grid == (4, 4, 4)
    loaded.save_pretrained(tmp_path)
    assert LVMAEConfig.from_pretrained(tmp_path).position_grid == (4, 4, 4)
    assert LVMAEConfig.from_pretrained(tmp_path, position_grid_size=(8, 4, 4)).position_grid == (8, 4, 4)


def test_a_config_without_the_field_is_flattened(tmp_path):
    assert LVMAEConfig().position_embedding == "factorized"
    (tmp_path / "config.json").write_text('{"model_type": "lvmae"}')
    assert AutoConfig.from_pretrained(tmp_path).position_embedding == "flattened"
    for kind in ("factorized", "flattened"):
        tiny_config(position_embedding=kind).save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).position_embedding == kind


def test_tubelets_are_a_view_that_can_be_written_through():
    clip = torch.zeros(2, 4, 3, 16, 24)
    tubelets = split_tubelets(clip, 2, 8)
    assert tubelets.untyped_storage().data_ptr() == clip.untyped_storage().data_ptr()
    tubelets[1, 1, 0, 2] = 1
    assert clip[1, 2:, :, :8, 16:].all()
    assert clip.sum() == 2 * 3 * 8 * 8


def test_tubelets_are_cut_and_gathered_by_position():
    clip = torch.randn(2, 4, 3, 16, 24)
    tubelets = split_tubelets(clip, 2, 8)
    indices = torch.tensor([[0, 5, 11], [7, 8, 10]])
    gathered = gather_tubelets(tubelets, indices)
    for row in range(2):
        for place, index in enumerate(indices[row].tolist()):
            slot, y, x = index // 6, index // 3 % 2, index % 3
            expected = clip[row, 2 * slot : 2 * slot + 2, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            assert torch.equal(gathered[row, place], expected)
    assert torch.equal(
        gather_tubelets(tubelets, None)[:, [3, 9]], gather_tubelets(tubelets, torch.tensor([[3, 9]] * 2))
    )


# VideoMAE


def videomae_config(num_frames: int = 16, **overrides) -> VideoMAEConfig:
    """Norms before VideoMAE's heads have an eps of 1e-5 whatever the config says: with 1e-5 everywhere nothing differs."""
    fields = {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "layer_norm_eps": 1e-5,
    }
    return VideoMAEConfig(num_frames=num_frames, **{**fields, **overrides})


def pair(videomae_class, lvmae_class, config: VideoMAEConfig):
    """A VideoMAE with random biases and norms too, and the LVMAE with its weights."""
    videomae = videomae_class(config)
    with torch.no_grad():
        for parameter in videomae.parameters():
            parameter.add_(parameter[0].numel() ** -0.5 * torch.randn_like(parameter) if parameter.ndim > 1 else 0.1)
    lvmae = lvmae_class(convert_config(config))
    lvmae.load_state_dict(convert_state_dict(videomae.state_dict()))
    return videomae.eval(), lvmae.eval()


def imagenet_clip(num_frames: int, size: int = 32) -> torch.Tensor:
    """Uniform pixels in [0, 1], normalized."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.rand(2, num_frames, 3, size, size) - mean) / std


@pytest.mark.parametrize("num_frames", [16, 128])
@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_encoder_is_videomaes(num_frames, use_mean_pooling):
    config = videomae_config(num_frames, use_mean_pooling=use_mean_pooling, layer_norm_eps=1e-12)
    videomae, lvmae = pair(VideoMAEModel, LVMAEModel, config)
    clip = imagenet_clip(num_frames)
    masked = topk_mask(torch.rand(2, lvmae.config.seq_length), lvmae.config.seq_length // 2)
    for mask in (None, masked):
        with torch.no_grad():
            expected = videomae(clip, mask).last_hidden_state
            torch.testing.assert_close(lvmae(clip, mask).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_encoder_has_videomaes_gradients():
    videomae, lvmae = pair(VideoMAEModel, LVMAEModel, videomae_config())
    clip = imagenet_clip(16)
    for model in (videomae, lvmae):
        scalar(model(clip)).backward()
    expected = convert_state_dict({name: p.grad for name, p in videomae.named_parameters()})
    for name, parameter in lvmae.named_parameters():
        scale = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("num_frames", [16, 128])
def test_decoding_all_hidden_pixels_is_videomaes_pretraining(num_frames):
    config = videomae_config(num_frames, use_mean_pooling=False)
    videomae, lvmae = pair(VideoMAEForPreTraining, LVMAEForPreTraining, config)
    clip = imagenet_clip(num_frames)
    tokens = lvmae.config.seq_length
    masked = topk_mask(torch.rand(2, tokens), int(0.9 * tokens))
    with torch.no_grad():
        expected, outputs = videomae(clip, masked), lvmae(clip, masked)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-5, rtol=0)


def test_classifier_is_videomaes():
    videomae, lvmae = pair(VideoMAEForVideoClassification, LVMAEForVideoClassification, videomae_config(num_labels=5))
    clip, labels = imagenet_clip(16), torch.tensor([4, 0])
    with torch.no_grad():
        expected, outputs = videomae(clip, labels), lvmae(clip, labels)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-5, rtol=0)


# Pre-training


def naive_targets(model, inputs) -> torch.Tensor:
    """(B, N, target_size), one tubelet at a time."""
    if "target_codes" in inputs:
        return inputs["target_codes"]
    clip, size = inputs["pixel_values_videos"], model.config.patch_size
    rows = []
    for row in range(len(clip)):
        tokens = []
        for slot in range(clip.shape[1] // 2):
            for y in range(0, clip.shape[3], size):
                for x in range(0, clip.shape[4], size):
                    cell = clip[row, 2 * slot : 2 * slot + 2, :, y : y + size, x : x + size]
                    pixels = cell.permute(0, 2, 3, 1).reshape(-1, clip.shape[2])
                    if model.config.norm_pix_loss:
                        pixels = (pixels - pixels.mean(dim=0)) / (pixels.std(dim=0) + 1e-6)
                    tokens.append(pixels.flatten())
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "overrides"), [("codes", {}), ("pixels", {}), ("pixels", {"norm_pix_loss": False, "num_channels": 4})]
)
def test_loss_is_the_papers_formula(kind, overrides):
    model = build(kind, **overrides)
    inputs = inputs_for(model)
    with torch.no_grad():
        outputs = model(**inputs)
    targets, losses, counts = naive_targets(model, inputs), [], []
    for row in range(2):
        errors = [
            (outputs.logits[row, place] - targets[row, token]).square().mean().item()
            for place, token in enumerate(inputs["bool_decoded_pos"][row].nonzero().flatten().tolist())
            if inputs["bool_masked_pos"][row, token]
        ]
        losses.append(sum(errors) / len(errors))
        counts.append(len(errors))
    assert counts[0] != counts[1]  # and so fewer than are decoded: the formula has something to leave out
    assert outputs.loss.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_a_clip_without_hidden_decoded_tokens_adds_no_loss():
    model = build("codes")
    inputs = inputs_for(model)
    inputs["bool_masked_pos"][1] = topk_mask(-inputs["bool_decoded_pos"][1].float(), 32)
    first = model(**{name: tensor[:1] for name, tensor in inputs.items()}).loss
    torch.testing.assert_close(model(**inputs).loss, first / 2)


def test_targets_count_only_where_hidden_and_decoded():
    model = build("codes")
    inputs = inputs_for(model)
    loss = model(**inputs).loss
    counted = inputs["bool_masked_pos"] & inputs["bool_decoded_pos"]
    inputs["target_codes"] = torch.where(counted.unsqueeze(-1), inputs["target_codes"], 1e6)
    assert torch.equal(model(**inputs).loss, loss)
    inputs["target_codes"] = inputs["target_codes"] + 0.5 * counted.unsqueeze(-1)
    assert not torch.equal(model(**inputs).loss, loss)


def test_hidden_pixels_do_not_reach_the_predictions():
    model = build("codes")
    inputs = inputs_for(model)
    inputs["pixel_values_videos"].requires_grad_()
    model(**inputs).logits.square().sum().backward()
    gradient = split_tubelets(inputs["pixel_values_videos"].grad, 2, 8).flatten(1, 3).flatten(2)
    assert torch.equal(gradient.any(dim=2), ~inputs["bool_masked_pos"])


def test_without_codes_there_are_predictions_and_no_loss():
    model = build("codes")
    inputs = inputs_for(model)
    with torch.no_grad():
        with_codes = model(**inputs)
        del inputs["target_codes"]
        without = model(**inputs)
    assert without.loss is None
    assert torch.equal(without.logits, with_codes.logits)


def test_default_masks_hide_tubes_and_decode_all_that_is_hidden():
    model = build("codes", num_frames=20, image_size=80, mask_ratio=0.9)  # 10 x 10 x 10 tokens
    clip = torch.randn(2, 20, 3, 80, 80)
    with torch.no_grad():
        outputs = model(clip)
        again = model(clip, outputs.bool_masked_pos)
    assert outputs.bool_masked_pos.sum(dim=1).tolist() == [900, 900]
    slots = outputs.bool_masked_pos.view(2, 10, 100)
    assert (slots == slots[:, :1]).all()
    assert not torch.equal(slots[0], slots[1])
    assert torch.equal(outputs.bool_decoded_pos, outputs.bool_masked_pos)
    assert torch.equal(outputs.logits, again.logits)


def test_the_last_decoder_layer_computes_only_what_is_predicted():
    model = build("codes")
    outputs = []
    model.decoder.layers[-1].register_forward_hook(lambda layer, args, output: outputs.append((args[0], output)))
    model(**inputs_for(model))
    ((hidden_states, output),) = outputs
    with torch.no_grad():
        whole = model.decoder.layers[-1](hidden_states)
    assert hidden_states.shape[1] == 32 + 16
    torch.testing.assert_close(output, whole[:, 32:])


def test_decoder_sees_every_visible_token_and_no_undecoded_position():
    """What is decoded besides changes a prediction (mask tokens attend to each other); order does not."""
    model = build("codes")
    inputs = inputs_for(model)
    fewer = {**inputs, "bool_decoded_pos": inputs["bool_decoded_pos"].clone()}
    for row in range(2):
        fewer["bool_decoded_pos"][row, inputs["bool_decoded_pos"][row].nonzero()[-1]] = False
    assert (run(model, inputs)[:, :-1] - run(model, fewer)).abs().max() > 1e-4
    encoded = model.lvmae(inputs["pixel_values_videos"], inputs["bool_masked_pos"]).last_hidden_state
    visible, decoded = ((~inputs["bool_masked_pos"]).nonzero()[:, 1], inputs["bool_decoded_pos"].nonzero()[:, 1])
    visible, decoded = visible.view(2, -1), decoded.view(2, -1)
    flipped = model.decoder(encoded, visible, decoded.flip(1)).flip(1)
    torch.testing.assert_close(flipped, run(model, inputs), atol=2e-6, rtol=1e-5)


def test_loss_of_levels_is_the_mean_cross_entropy_of_each_channel_on_its_own():
    """Written out: token by token, channel by channel, from probabilities."""
    model = build("levels")
    inputs = inputs_for(model)
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.shape == (2, 16, 8 + 5 + 5)
    clips, parts = [], []
    for row in range(2):
        tokens = []
        for place, position in enumerate(inputs["bool_decoded_pos"][row].nonzero().flatten().tolist()):
            if not inputs["bool_masked_pos"][row, position]:
                continue
            losses = []
            for channel, (first, level) in enumerate(((0, 8), (8, 5), (13, 5))):
                chances = output.logits[row, place, first : first + level].double().softmax(dim=0)
                code = inputs["target_codes"][row, position, channel].item()
                losses.append(-chances[round(code * (level // 2)) + level // 2].log())
            tokens.append(torch.stack(losses))
        clips.append(torch.stack(tokens).mean(dim=0))
    parts = torch.stack(clips).mean(dim=0)
    torch.testing.assert_close(output.channel_losses.double(), parts, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output.loss.double(), parts.mean(), atol=1e-6, rtol=1e-6)


def test_predicted_codes_are_what_the_tokenizer_can_decode():
    model = build("levels")
    codes = inputs_for(model)["target_codes"]
    half = torch.tensor(model.config.levels) // 2
    numbers = (codes * half).round().long() + half
    logits = torch.cat([torch.eye(level)[numbers[..., i]] for i, level in enumerate((8, 5, 5))], dim=-1)
    assert torch.equal(model.predicted_codes(logits - 0.5), codes)
    assert torch.equal(build("codes").predicted_codes(codes), codes)
    with pytest.raises(ValueError, match=r"Got config.target_type='pixels', expected a model that predicts codes"):
        build("pixels").predicted_codes(codes)


@pytest.mark.parametrize("kind", ["codes", "pixels"])
def test_channel_losses_are_the_parts_of_the_loss(kind):
    model = build(kind)
    inputs = inputs_for(model)
    with torch.no_grad():
        output = model(**inputs)
    assert output.channel_losses.shape == (3,)  # three FSQ channels, or three colours
    torch.testing.assert_close(output.channel_losses.mean(), output.loss)
    where = (inputs["bool_masked_pos"] & inputs["bool_decoded_pos"])[inputs["bool_decoded_pos"]].view(2, -1)
    decoded = inputs["bool_decoded_pos"].nonzero()[:, 1].view(2, -1)
    targets = model.gather_targets(inputs["pixel_values_videos"], inputs.get("target_codes"), decoded)
    error = (output.logits - targets).square()
    first = (error[..., 0] if kind == "codes" else error[..., ::3].mean(dim=-1)) * where
    torch.testing.assert_close(output.channel_losses[0], (first.sum(dim=1) / where.sum(dim=1)).mean())


def test_128_frames_of_224_pixels_give_the_papers_token_counts():
    """90 % hidden as VideoMAE rounds it (20 of 196 cells stay), 15 % decoded: 1,280 tokens encoded, 3,161 in the decoder."""
    sizes = {
        "image_size": 224,
        "patch_size": 16,
        "num_frames": 128,
        "num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
    }
    shares = {"mask_ratio": 0.9, "decoder_mask_ratio": 0.9, "decoder_random_ratio": 0.05}
    model = build("codes", **sizes, **shares)
    lengths = []
    for layer in (model.lvmae.encoder.layers[0], model.decoder.layers[0]):
        layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    masked = random_tube_mask(1, model.config.grid_size, model.config.mask_ratio)
    counts = model.config.decoder_token_counts(model.config.seq_length)
    decoded = adaptive_decoder_mask(torch.rand(1, model.config.seq_length), *counts)
    logits = run(
        model,
        {
            "pixel_values_videos": torch.randn(1, 128, 3, 224, 224),
            "bool_masked_pos": masked,
            "bool_decoded_pos": decoded,
        },
    )
    assert lengths == [1280, 1280 + 1881]
    assert logits.shape == (1, 1881, 3)


@pytest.mark.parametrize("kind", ["codes", "levels", "pixels", "tubelets"])
def test_pretraining_step_compiles_into_one_graph(kind):
    """Forward and backward, masks given, without their counts: those are the config's."""
    model = build("codes" if kind == "tubelets" else kind).train()
    config, inputs = model.config, inputs_for(model)
    inputs["bool_masked_pos"] = random_tube_mask(2, config.grid_size, config.mask_ratio)
    inputs["bool_decoded_pos"] = topk_mask(torch.rand(2, config.seq_length), config.token_budget)
    inputs = tubelets_for(model, inputs) if kind == "tubelets" else inputs
    plain = gradients(model, inputs)
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), inputs)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[f"_orig_mod.{name}"], gradient, atol=1e-6, rtol=1e-5)


def test_compiled_masks_with_other_counts_need_these_counts():
    model = build("codes")
    inputs = inputs_for(model)
    inputs["bool_decoded_pos"] = topk_mask(torch.rand(2, 64), 20)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=r"Expected bool_decoded_pos with 24 tokens in every row: correct the mask"):
        compiled(**inputs)
    inputs |= {"num_visible": 32, "num_decoded": 20}
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs), atol=2e-6, rtol=1e-5)


# Classification


@pytest.mark.parametrize("kind", ["mean", "class_attention"])
def test_tubes_are_dropped_in_training_only(kind):
    model = build(kind, tube_drop_ratio=0.5)
    inputs = inputs_for(model)
    whole = run(model, inputs)
    assert torch.equal(run(model, inputs), whole)
    model.train()
    torch.manual_seed(3)
    dropped = run(model, inputs)
    torch.manual_seed(3)
    mask = random_tube_mask(2, (4, 4, 4), 0.5)
    model.eval()
    with torch.no_grad():
        tokens = model.lvmae(inputs["pixel_values_videos"], mask).last_hidden_state
        expected = model.classifier(model.fc_norm(model.pooler(tokens)))
    assert torch.equal(dropped, expected)


def test_labels_may_be_probabilities():
    """torch's cross-entropy for probabilities, where the problem is one class a clip; transformers' own loss otherwise."""
    clips, targets = torch.randn(4, 8, 3, 32, 32), torch.rand(4, 3).softmax(dim=-1)
    model = LVMAEForVideoClassification(tiny_config(problem_type="single_label_classification")).eval()
    outputs = model(clips, labels=targets)
    naive = (
        -sum(t * p for t, p in zip(targets.flatten().tolist(), outputs.logits.log_softmax(-1).flatten().tolist())) / 4
    )
    assert outputs.loss.item() == pytest.approx(naive, rel=1e-5)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, targets))
    hard = torch.tensor([0, 2, 1, 2])
    one_hot = torch.nn.functional.one_hot(hard, 3).float()
    torch.testing.assert_close(model(clips, labels=one_hot).loss, model(clips, labels=hard).loss)
    torch.testing.assert_close(model(clips, labels=targets, num_items_in_batch=8).loss, outputs.loss / 2)
    multi = LVMAEForVideoClassification(tiny_config(problem_type="multi_label_classification")).eval()
    outputs = multi(clips, labels=one_hot)
    torch.testing.assert_close(
        outputs.loss, torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, one_hot)
    )


def test_probabilities_of_label_sets_cost_the_mean_of_the_sets():
    config = tiny_config(
        num_labels=5, label_sets={"verb": [0, 2], "noun": [2, 5]}, problem_type="single_label_classification"
    )
    model, clips = LVMAEForVideoClassification(config).eval(), torch.randn(3, 8, 3, 32, 32)
    targets = torch.cat([torch.rand(3, 2).softmax(-1), torch.rand(3, 3).softmax(-1)], dim=1)
    outputs = model(clips, labels=targets)
    cross_entropy = torch.nn.functional.cross_entropy
    parts = [cross_entropy(outputs.logits[:, part], targets[:, part]) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(outputs.loss, sum(parts) / 2)
    hard = torch.tensor([[0, 2], [1, 0], [1, 1]])
    one_hot = torch.cat([torch.nn.functional.one_hot(hard[:, 0], 2), torch.nn.functional.one_hot(hard[:, 1], 3)], dim=1)
    torch.testing.assert_close(model(clips, labels=one_hot.float()).loss, model(clips, labels=hard).loss)
    with pytest.raises(ValueError, match=r"Got labels of shape \(3, 4\), expected \(3, 5\) for the label sets"):
        model(clips, labels=targets[:, :4])


def test_class_attention_pools_with_one_query():
    model = build("class_attention", attn_implementation="eager")
    tokens = torch.randn(2, 10, 32)
    pooler = model.pooler
    with torch.no_grad():
        states = pooler.layer_norm1(torch.cat([pooler.class_token.expand(2, -1, -1), tokens], dim=1))
        full, _ = pooler.attention(states)  # every token asks; only the class token's answer is wanted
        pooled = pooler.class_token + full[:, :1]
        pooled = pooled + pooler.mlp(pooler.layer_norm2(pooled))
        torch.testing.assert_close(pooler(tokens), pooled[:, 0])


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    model = build("encoder", drop_path_rate=0.25).train()
    assert [layer.drop_path.rate for layer in model.encoder.layers] == [0, 0.25]
    branch = torch.ones(4000, 2, 3)
    dropped = model.encoder.layers[1].drop_path(branch)
    assert (dropped == dropped[:, :1, :1]).all()
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    share = (dropped[:, 0, 0] == 0).float().mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(model.eval().encoder.layers[1].drop_path(branch), branch)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_model
def test_nothing_is_drawn_in_evaluation(kind, attention):
    drops = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}
    if kind in ("mean", "class_attention"):
        drops["tube_drop_ratio"] = 0.5
    model = build(kind, attn_implementation=attention, **drops)
    inputs = inputs_for(model)
    assert torch.equal(run(model, inputs), run(model, inputs))
    assert not torch.equal(run(model.train(), inputs), run(model, inputs))


def test_losses_of_half_precision_are_computed_in_float32():
    label_sets = {"verb": [0, 2], "noun": [2, 5]}
    classifier = build("mean", num_labels=5, label_sets=label_sets).bfloat16()
    logits = run(classifier, {"pixel_values_videos": torch.randn(2, 8, 3, 32, 32)})
    assert logits.dtype == torch.float32
    for part in (slice(0, 2), slice(2, 5)):
        torch.testing.assert_close(logits[:, part].exp().sum(dim=1), torch.ones(2), atol=1e-5, rtol=0)
    for kind in ("codes", "levels", "pixels"):
        model = build(kind)
        logits, masked = torch.randn(2, 5, model.config.target_size).bfloat16(), torch.ones(2, 5, dtype=torch.bool)
        targets = torch.zeros(2, 5, 3) if kind == "levels" else torch.rand(2, 5, model.config.target_size)
        loss = model.forward_loss(logits, targets, masked)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, model.forward_loss(logits.float(), targets, masked))


@pytest.mark.parametrize("kind", ["mean", "class_attention"])
def test_classifier_compiles_into_one_graph(kind):
    torch.compiler.reset()
    model = build(kind)
    inputs = inputs_for(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "class_attention"])
def test_lora_trains_saves_loads_and_merges(kind, tmp_path):
    base = build(kind)
    base.save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(base, lora).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = inputs_for(model.base_model.model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step only moves lora_B away from zero
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if "lora_" in name or "classifier.modules_to_save" in name}
    assert changed == expected
    assert len(expected) == 2 * 2 * (2 + (kind == "class_attention")) + 2

    trained = run(model.eval(), inputs)
    model.save_pretrained(tmp_path / "adapter")
    fresh = LVMAEForVideoClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(run(loaded, inputs), trained)
    torch.testing.assert_close(run(loaded.merge_and_unload(), inputs), trained, atol=2e-6, rtol=1e-5)


# What is refused: got, expected, remedy


def clip(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@every_model
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (clip(8, 3, 32, 32), r"Got pixel_values_videos of shape \(8, 3, 32, 32\), expected 5 axes .*: reshape it"),
        (clip(1, 8, 4, 32, 32), r"Got 4 channels, expected config.num_channels=3: put the channels on axis 2"),
        (clip(1, 7, 3, 32, 32), r"Got 7 frames, expected a multiple of config.tubelet_size=2: sample"),
        (clip(1, 0, 3, 32, 32), r"Got 0 frames, expected a multiple"),
        (clip(1, 8, 3, 32, 30), r"Got frames of 32 x 30 pixels, expected multiples of patch_size=8: resize"),
    ],
    ids=["rank", "channels", "frames", "no frames", "size"],
)
def test_clips_that_do_not_fit_are_refused(kind, pixels, message):
    with pytest.raises(ValueError, match=message):
        build(kind)(pixels)


def uneven(counts: tuple[int, int]) -> torch.Tensor:
    return torch.stack([topk_mask(torch.rand(64), count) for count in counts])


@pytest.mark.parametrize("name", ["bool_masked_pos", "bool_decoded_pos"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(2, 63, dtype=torch.bool),
            r"of shape \(2, 63\) and torch.bool, expected \(2, 64\) .* and torch.bool: draw",
        ),
        (torch.zeros(1, 64, dtype=torch.bool), r"of shape \(1, 64\) and torch.bool, expected \(2, 64\) .*: draw"),
        (torch.zeros(2, 64), r"of shape \(2, 64\) and torch.float32, expected \(2, 64\) .* and torch.bool: draw"),
    ],
    ids=["tokens", "rows", "dtype"],
)
def test_masks_of_another_shape_are_refused_by_name(name, mask, message):
    model = build("codes")
    inputs = {**inputs_for(model), name: mask}
    with pytest.raises(ValueError, match=f"Got {name} {message}"):
        model(**inputs)


def test_a_wrong_hidden_mask_is_named_when_it_is_also_what_is_decoded():
    model = build("codes")
    with pytest.raises(ValueError, match=r"Got bool_masked_pos of shape \(2, 63\)"):
        model(torch.zeros(2, 8, 3, 32, 32), torch.zeros(2, 63, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        ("bool_masked_pos", (32, 31), r"Got visible positions \(~bool_masked_pos\) with 32 to 33 tokens .*: draw"),
        ("bool_masked_pos", (64, 64), r"Got visible positions \(~bool_masked_pos\) with 0 to 0 tokens .*: draw"),
        ("bool_decoded_pos", (8, 9), r"Got bool_decoded_pos with 8 to 9 tokens per row, expected the same .*: draw"),
        ("bool_decoded_pos", (0, 0), r"Got bool_decoded_pos with 0 to 0 tokens per row, expected .*at least 1.*: draw"),
    ],
)
def test_masks_with_other_counts_per_row_are_refused(name, counts, message):
    model = build("codes")
    with pytest.raises(ValueError, match=message):
        model(**{**inputs_for(model), name: uneven(counts)})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"num_visible": 31},
            r"Got visible positions \(~bool_masked_pos\) with 32 tokens per row, expected 31: correct",
        ),
        ({"num_decoded": 17}, r"Got bool_decoded_pos with 16 tokens per row, expected 17: correct"),
    ],
)
def test_counts_that_are_not_the_masks_are_refused(counts, message):
    model = build("codes")
    with pytest.raises(ValueError, match=message):
        model(**inputs_for(model), **counts)


@pytest.mark.parametrize("shape", [(2, 64, 4), (2, 32, 3), (1, 64, 3)])
def test_codes_of_another_shape_are_refused(shape):
    model = build("codes")
    message = rf"Got target_codes of shape \({', '.join(map(str, shape))}\), expected \(2, 64, 3\) .*: use a tokenizer"
    with pytest.raises(ValueError, match=message):
        model(**{**inputs_for(model), "target_codes": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("pixels", "target_codes", "the clip itself"),
        ("codes", "target_latents", "target_codes"),
        ("latents", "target_codes", "target_latents"),
    ],
)
def test_targets_of_another_kind_are_refused(kind, given, expected):
    model, inputs = LVMAEForPreTraining(tiny_config(target_type=kind)), inputs_for(build("pixels"))
    message = rf"Got {given} and config.target_type='{kind}', expected {expected} as target: leave {given} out"
    with pytest.raises(ValueError, match=message):
        model(**inputs, **{given: torch.zeros(2, 64, 3)})


def tubelets_for(model, inputs=None, **overrides):
    """The inputs of a model with its clips' visible tubelets in the clips' place."""
    inputs = dict(inputs or inputs_for(model))
    visible = (~inputs["bool_masked_pos"]).nonzero()[:, 1].view(2, -1)
    inputs["visible_tubelets"] = gather_tubelets(split_tubelets(inputs.pop("pixel_values_videos"), 2, 8), visible)
    return {**inputs, **overrides}


def test_visible_tubelets_are_all_that_the_encoder_reads():
    """Hidden states, logits, loss and gradients, of both models, to 1e-6: the same products."""
    model = build("codes")
    whole = inputs_for(model)
    gathered = tubelets_for(model, whole)
    expected = model.lvmae(whole["pixel_values_videos"], whole["bool_masked_pos"]).last_hidden_state
    seen = {name: gathered[name] for name in ("visible_tubelets", "bool_masked_pos")}
    torch.testing.assert_close(model.lvmae(**seen).last_hidden_state, expected, rtol=0, atol=1e-6)
    results = []
    for inputs in (whole, gathered):
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        results.append([output.logits, output.loss, *(weight.grad.clone() for weight in model.parameters())])
    for one, two in zip(*results):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_values_videos": torch.zeros(2, 8, 3, 32, 32)},
            r"Got both pixel_values_videos and visible_tubelets, exp",
        ),
        ({"visible_tubelets": None}, r"Got neither of pixel_values_videos and visible_tubelets, expected one of them"),
        (
            {"bool_masked_pos": None},
            r"Got visible_tubelets and no bool_masked_pos, expected .*the mask",
        ),
        (
            {"visible_tubelets": torch.zeros(2, 32, 2, 3, 8, 8).byte()},
            r"Got pixels of torch.uint8, expected floating point .*: normalize them",
        ),
        ({"visible_tubelets": torch.zeros(2, 32, 3, 2, 8, 8)}, r"of shape \(2, 32, 3, 2, 8, 8\), expected .* 2 frames"),
        (
            {"visible_tubelets": torch.zeros(2, 31, 2, 3, 8, 8)},
            r"with 32 tokens per row, expected 31: correct the mask",
        ),
        (
            {"visible_tubelets": torch.zeros(1, 32, 2, 3, 8, 8)},
            r"Got bool_masked_pos of shape \(2, 64\).*expected \(1, 64",
        ),
    ],
)
def test_tubelets_that_do_not_fit_are_refused(change, message):
    model = build("codes")
    with pytest.raises(ValueError, match=message):
        model(**tubelets_for(model, **change))


def test_tubelets_for_a_model_of_pixels_and_bytes_are_refused():
    model = build("pixels")
    with pytest.raises(ValueError, match=r"Got visible_tubelets and config.target_type='pixels', expected whole clips"):
        model(**tubelets_for(model))
    inputs = inputs_for(model)
    with pytest.raises(ValueError, match=r"Got pixels of torch.uint8, expected floating point .*: normalize them"):
        model(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"].byte()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_grid_size": (4, 4)}, r"Got position_grid_size=\(4, 4\), expected the tokens .*: leave it out"),
        ({"decoder_hidden_size": 4}, r"Got decoder_hidden_size=4 with position_embedding='factorized', .*6.*: widen"),
        ({"hidden_size": 30}, r"Got hidden_size=30 with num_attention_heads=4, expected .*: change"),
        (
            {"decoder_hidden_size": 15},
            r"Got decoder_hidden_size=15 with decoder_num_attention_heads=2, expected .*: change",
        ),
        ({"image_size": (32, 36)}, r"Got image_size=\(32, 36\) and patch_size=8, expected .*: use 32 x 32 pixels"),
        ({"num_frames": 9}, r"Got num_frames=9 and tubelet_size=2, expected .*: use 8 frames"),
        ({"image_size": [32]}, r"Got image_size=\[32\], expected one side or .*: correct"),
        ({"levels": ()}, r"Got levels=\(\), expected 2 to 65536 levels .*: take the tokenizer's"),
        ({"levels": (8,) * 22}, r"Got levels=.*, expected .* fewer than 2\^63 codes: take"),
        (
            {"hidden_size": 2**16, "intermediate_size": 2**16, "num_hidden_layers": 1000},
            r"Got layers of 3e\+13 parameters, expected at most 1e\+12: check",
        ),
        (
            {"decoder_mask_ratio": 0.1, "decoder_random_ratio": 0.2},
            r"Got decoder_random_ratio=0.2 .*expected .*: lower",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**7),
        ("decoder_num_hidden_layers", 0),
        ("hidden_size", 2**20),
        ("tubelet_size", 0),
        ("mask_ratio", 90),
        ("drop_path_rate", 1.0),
        ("tube_drop_ratio", float("nan")),
        ("layer_norm_eps", 0.0),
    ],
)
def test_numbers_outside_their_range_are_refused_when_set_too(field, value):
    config = tiny_config()
    for use in (lambda: tiny_config(**{field: value}), lambda: setattr(config, field, value)):
        with pytest.raises(
            StrictDataclassFieldValidationError, match=rf"'{field}':\n.*Value must be .*, got {value}\."
        ):
            use()
    assert getattr(config, field) == getattr(tiny_config(), field)


@pytest.mark.parametrize("model_class", [LVMAEModel, LVMAEForPreTraining, LVMAEForVideoClassification])
def test_a_config_that_no_longer_fits_is_refused_when_a_model_is_built(model_class):
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match=r"Got hidden_size=32 with num_attention_heads=5, expected"):
        model_class(config)


def test_a_hostile_config_file_is_refused_at_once(tmp_path):
    fields = {**tiny_config().to_dict(), "num_hidden_layers": 10**7}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(StrictDataclassFieldValidationError, match="num_hidden_layers"):
        LVMAEModel.from_pretrained(tmp_path)


def test_defaults_are_the_papers_limits_are_allowed_and_sides_keep_their_order():
    config = LVMAEConfig()
    assert (config.layer_norm_eps, config.initializer_range, config.tube_drop_ratio) == (1e-6, 0.02, 0.2)
    assert LVMAEConfig(image_size=(112, 224)).grid_size == (64, 7, 14)
    assert LVMAEConfig(decoder_mask_ratio=0.25, decoder_random_ratio=0.25).token_budget == 12_544


def test_unknown_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"Got size='giant', expected one of \['base', 'huge', 'large', 'small'\]: choose"
    ):
        LVMAEConfig.from_size("giant")
