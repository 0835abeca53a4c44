"""What must hold on a GPU, in bfloat16: `bash benchmarks/gpu.sh` runs it. The same checks run on a CPU where they mean something there."""

import contextlib
import shutil
from typing import Any

import pytest
import torch
from builders import CLIPS, losses, make_trainer, tiny_config, tiny_tokenizer_config
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import TrainerCallback

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.models.masking import random_tube_mask, topk_mask
from transformers_lvmae.training.base import train_and_save


GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
KINDS = ("pretraining", "classifier", "tokenizer")


@pytest.fixture(autouse=True)
def settings_of_a_run():
    """Undo what conftest.py sets for the CPU's tests and compilers leave behind."""
    torch._dynamo.reset()
    yield
    torch.cuda.set_sync_debug_mode("default") if torch.cuda.is_available() else None


def build(kind: str, device: str, **fields: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A tiny model in training mode, and a batch; the same on every device. No draws happen in the models."""
    torch.manual_seed(0)
    clips = torch.rand(2, 8, 3, 32, 32)
    if kind == "pretraining":
        config = tiny_config(initializer_range=0.2, **fields)
        model = LVMAEForPreTraining(config)
        batch = {"pixel_values_videos": clips, "target_codes": torch.rand(2, 64, 3)}
        batch["bool_masked_pos"] = random_tube_mask(2, config.grid_size, config.mask_ratio)
        batch["bool_decoded_pos"] = topk_mask(torch.rand(2, 64), config.token_budget)
        counts = {"num_visible": 32, "num_decoded": config.token_budget}
    elif kind == "classifier":
        model = LVMAEForVideoClassification(tiny_config(initializer_range=0.2, tube_drop_ratio=0.0, **fields))
        batch, counts = {"pixel_values_videos": clips, "labels": torch.tensor([0, 2])}, {}
    else:
        model = FSQMagViTModel(tiny_tokenizer_config(unmasked_clip_ratio=1.0, **fields))
        batch, counts = {"pixel_values_videos": torch.rand(2, 4, 3, 16, 16)}, {}
    return model.to(device).train(), {name: value.to(device) for name, value in batch.items()} | counts


def step(model: Any, batch: dict[str, Any], autocast: bool = True) -> dict[str, torch.Tensor]:
    """Loss and gradients in float32."""
    device = batch["pixel_values_videos"].device.type
    model.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: value.detach().float().cpu().clone() for name, value in {"loss": loss, **found}.items()}


def difference(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Relative distance of all gradients together."""
    pairs = [(found[name], value) for name, value in exact.items() if name != "loss"]
    return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5 / sum(b.square().sum() for _, b in pairs) ** 0.5)


def assert_as_near(found: dict[str, torch.Tensor], kind: str, device: str) -> None:
    """Two ways to compute in bfloat16 are equally far from float32, although they round differently."""
    exact = step(*build(kind, device), autocast=False)
    assert difference(found, exact) < max(1.5 * difference(step(*build(kind, device)), exact), 0.02)


@on_both
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind, device):
    exact = step(*build(kind, "cpu"), autocast=False)
    found = step(*build(kind, device))
    assert float(found["loss"]) == pytest.approx(float(exact["loss"]), rel=0.03)
    assert difference(found, exact) < 0.15


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_that_of_a_cpu(kind, device):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert difference(step(*build(kind, device), autocast=False), step(*build(kind, "cpu"), autocast=False)) < 1e-3


@on_both
@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
def test_attention_kernels_agree(kernel, device):
    if device == "cpu" and kernel is SDPBackend.EFFICIENT_ATTENTION:
        pytest.skip("a CPU has no such kernel")
    with sdpa_kernel(kernel):
        found = step(*build("pretraining", device, attn_implementation="sdpa"))
    assert_as_near(found, "pretraining", device)


@on_gpu
def test_the_flash_attention_package_agrees(device):
    pytest.importorskip("flash_attn")
    model, batch = build("pretraining", device)
    model.set_attn_implementation("flash_attention_2")
    assert_as_near(step(model, batch), "pretraining", device)


@on_both
@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_recomputed_outputs_change_no_gradient(kind, device):
    found, exact = (step(*build(kind, device, recompute_activations=recompute)) for recompute in (True, False))
    assert difference(found, exact) < (1e-6 if device == "cpu" else 1e-3)


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(kind, device):
    """By inductor; tests/models/test_one_graph.py does without it."""
    model, batch = build(kind, device)
    model.compile(fullgraph=True)
    assert_as_near(step(model, batch), kind, device)


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_can_be_a_cuda_graph(kind, device):
    """Captured once, replayed with another batch: no memory that depends on values, no value that the host reads."""
    model, batch = build(kind, device)
    other = {name: value.flip(0) if torch.is_tensor(value) else value for name, value in batch.items()}
    other["pixel_values_videos"] = 1 - batch["pixel_values_videos"]
    exact = step(model, other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model, batch)
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    # autocast must not keep casts of weights from outside of the graph
    with torch.cuda.graph(graph), torch.autocast(device, torch.bfloat16, cache_enabled=False):
        model(**batch).loss.backward()
    for name, value in other.items():
        if torch.is_tensor(value):
            batch[name].copy_(value)
    graph.replay()
    found = {
        name: parameter.grad.float().cpu() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert difference(found, {name: value for name, value in exact.items() if name in found}) < 1e-2


class RefuseToWait(TrainerCallback):
    """From the end of the second step to the end of the third, with all that lies between, an error for whoever waits for the device."""

    refused = 0

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if state.global_step == 2 else "default")
        self.refused += state.global_step == 2


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


@on_gpu
@pytest.mark.parametrize("stage", ["tokenizer", "pretraining", "classification"])
def test_no_step_waits_for_the_device(stage, device, splits, tmp_path):
    """Loading, copying, targets, forward, backward, clipping and the optimizer. tests/training/test_host_waits.py finds most on a CPU."""
    torch.use_deterministic_algorithms(False)
    trainer = make_trainer(
        stage, splits, tmp_path, use_cpu=False, bf16=True, max_steps=4, logging_steps=100, per_device_train_batch_size=2
    )
    refuse = RefuseToWait()
    trainer.add_callback(refuse)
    trainer.train()
    assert refuse.refused == 1


@on_both
def test_resumed_equals_uninterrupted_in_bfloat16(device, splits, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "bf16": True, "use_cpu": device == "cpu"}
    whole = make_trainer("pretraining", splits, tmp_path / "whole", **options)
    train_and_save(whole)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = make_trainer("pretraining", splits, tmp_path / "resumed", **options)
    train_and_save(resumed)
    assert losses(resumed)[-2:] == pytest.approx(losses(whole)[-2:], rel=1e-4 if device == "cuda" else 1e-9)


@contextlib.contextmanager
def group_of_one(device: str):
    store = torch.distributed.HashStore()
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh(device, (1,))
    finally:
        torch.distributed.destroy_process_group()


@on_both
@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_sharded_by_fsdp2_is_near_float32(kind, device):
    """One device holds all shards. The weights of a unit are gathered in bfloat16, so there is no autocast."""
    with group_of_one(device) as mesh:
        model, batch = build(kind, device)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
        for module in [*reversed(layers), model]:  # inner units first
            fully_shard(module, mesh=mesh, mp_policy=policy)
        model.zero_grad()
        model(**batch).loss.backward()
        found = {name: value.grad.full_tensor().float().cpu() for name, value in model.named_parameters()}
    exact = step(*build(kind, device), autocast=False)
    assert difference(found, exact) < 0.15
