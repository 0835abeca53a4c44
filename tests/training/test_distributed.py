"""Several processes, several hosts, the launchers' configs, and the options of large runs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, prepare_multi_gpu_env
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from builders import CLIPS, MODEL, SCRIPTS, TESTS, TOKENIZER, assert_same, load_script, tiny_config
from safetensors.torch import load_file

from transformers_lvmae import FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining


CONFIGS = SCRIPTS / "accelerate"
PREAMBLE = f"""
import json, os, signal, sys
import torch
sys.path[:0] = {[str(TESTS), str(Path(__file__).parent)]!r}
from test_distributed import *
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
"""


def launch_arguments(name):
    """The config as `accelerate launch --config_file` understands it."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "scripts/pretrain.py"])
    return _validate_launch_command(args)[0]


def run(*command, timeout=600, **environment):
    """A Python command in processes of its own; raises with the end of what it said where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


def on_two_processes(folder, script, *arguments, **environment):
    path = folder / "run.py"
    path.write_text(PREAMBLE + script)
    run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", path, *arguments, **environment)


def test_the_launchers_configs_are_accelerates():
    ddp, fsdp, deepspeed = (launch_arguments(name) for name in ("ddp", "fsdp2", "deepspeed_zero2"))
    assert (ddp.multi_gpu, ddp.use_fsdp, ddp.use_deepspeed) == (True, False, False)
    assert (fsdp.multi_gpu, fsdp.use_fsdp, fsdp.use_deepspeed) == (False, True, False)
    assert (deepspeed.multi_gpu, deepspeed.use_fsdp, deepspeed.use_deepspeed) == (False, False, True)
    assert [args.num_processes for args in (ddp, fsdp, deepspeed)] == [8, 8, 8]
    assert {args.mixed_precision for args in (ddp, fsdp, deepspeed)} == {"no"}
    assert (fsdp.fsdp_version, fsdp.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    assert (int(deepspeed.zero_stage), deepspeed.gradient_clipping) == (2, "auto")
    assert len(list(CONFIGS.iterdir())) == 3


def test_fsdp_wraps_what_the_model_says(monkeypatch):
    for name, value in prepare_multi_gpu_env(launch_arguments("fsdp2")).items():
        monkeypatch.setenv(name, value)
    model = LVMAEForPreTraining(tiny_config())
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = {type(module).__name__ for module in model.modules() if is_wrapped(module)}
    assert wrapped == {"LVMAEEmbeddings", "LVMAEPatchEmbeddings", "LVMAELayer"}


SLURM = {
    "scontrol": 'echo "scontrol $*" >> "$RECORD"; [ "$1" = show ] && printf "node-a\\nnode-b\\n"; true',
    "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
    "accelerate": 'printf "%s " "$@" >> "$RECORD"; echo >> "$RECORD"; [ -z "${SLEEP:-}" ] || sleep "$SLEEP"',
}


def run_job(tmp_path, **environment):
    """Start the Slurm job with programs in place of Slurm's, on two nodes of four GPUs; returns the process and its record."""
    for name, line in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "record").touch()
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node-[a-b]"}
    variables |= {"SLURM_JOB_ID": "20007", "SLURM_NNODES": "2", "RECORD": str(tmp_path / "record")}
    variables |= {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}
    command = ["bash", str(SCRIPTS / "slurm" / "pretrain.sbatch"), "--output_dir", "a folder", "--bf16"]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True), tmp_path / "record"


def test_the_slurm_job_starts_a_launcher_on_each_node(tmp_path):
    job, record = run_job(tmp_path)
    assert job.wait() == 0
    launched = [line for line in record.read_text().splitlines() if line.startswith("launch")]
    for node, line in enumerate(launched):
        args = launch_command_parser().parse_args(shlex.split(line.replace("a folder", "'a folder'"))[1:])
        assert (args.num_machines, args.machine_rank, args.num_processes) == (2, node, 8)
        assert (args.main_process_ip, args.main_process_port) == ("node-a", 20007)
        assert args.config_file == "scripts/accelerate/ddp.yaml"
        assert (args.training_script, args.training_script_args) == (
            "scripts/pretrain.py", ["--output_dir", "a folder", "--bf16"]
        )  # fmt: skip
    assert len(launched) == 2


def test_the_slurm_job_queues_itself_again_before_its_time_is_up(tmp_path):
    job, record = run_job(tmp_path, SLEEP="2")
    while "launch" not in record.read_text():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert "goes into the queue again" in job.communicate()[0]
    assert "scontrol requeue 20007" in record.read_text()


CURVE = {
    "max_steps": 4,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "base_learning_rate": None,
    "learning_rate": 0.05,
}
CURVE |= {"num_clips": 16, "save_strategy": "steps", "save_steps": 2}


def train_curve(output_dir, batch_size, checkpoint=None):
    """Four steps of gradient descent with momentum and clipping; the losses and the weights, whole, are written down."""
    from builders import make_trainer

    from transformers_lvmae.data import load_video_dataset

    splits = load_video_dataset(CLIPS, label_column="label")
    trainer = make_trainer("pretraining", splits, output_dir, per_device_train_batch_size=batch_size, **CURVE)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


def train_chosen(output_dir, batch_size):
    """Four steps of a classifier of half of the tokens, which its workers choose; losses and weights are written down."""
    from builders import make_trainer

    from transformers_lvmae import LVMAEForVideoClassification
    from transformers_lvmae.data import ChosenVideoClips, load_video_dataset

    splits = load_video_dataset(CLIPS, label_column="label")
    torch.manual_seed(0)
    fields = {"token_keep_ratio": 0.5, "tube_drop_ratio": 0.25, "scorer_patch_size": 4, "scorer_is_trained": True}
    model = LVMAEForVideoClassification(LVMAEConfig(**{**MODEL.to_dict(), **fields}))
    options = {**CURVE, "save_strategy": "no"}
    trainer = make_trainer(
        "classification", splits, output_dir, model=model, per_device_train_batch_size=batch_size, **options
    )
    rows, selector = splits["train"].select(range(16)), model.lvmae.token_selector
    trainer.train_dataset = ChosenVideoClips(
        rows, trainer.processing_class, 8, training=True, label_column="label", selector=selector
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


def pretend_that_cpus_are_sharded():
    """accelerate turns FSDP into DDP where there are only CPUs; but for that, everything from here on is its own path."""
    from accelerate import DistributedType, PartialState
    from transformers import Trainer

    create = Trainer.create_accelerator_and_postprocess

    def create_for_fsdp(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(self)

    Trainer.create_accelerator_and_postprocess = create_for_fsdp


def check_sharding(trainer):
    """Every parameter of the model is sharded, layer by layer; the tokenizer is left alone."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    name, matrix = next((n, p) for n, p in trainer.model.named_parameters() if n.endswith("fc1.weight"))
    assert matrix.to_local().shape[0] * 2 == matrix.shape[0], name
    units = {type(module).__mro__[2].__name__ for module in trainer.model.modules() if isinstance(module, FSDPModule)}
    assert {"LVMAELayer", "LVMAEEmbeddings", "LVMAEForPreTraining"} <= units, units
    assert not any(isinstance(parameter, DTensor) for parameter in trainer.target_builder.tokenizer.parameters())
    assert not any(isinstance(module, FSDPModule) for module in trainer.target_builder.tokenizer.modules())


@pytest.fixture(scope="module")
def single_curve(tmp_path_factory):
    """One process with the whole batch."""
    folder = tmp_path_factory.mktemp("one")
    train_curve(folder, 4)
    return folder


def losses_of(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_sharded_over_two_processes_the_loss_is_that_of_one(single_curve, tmp_path):
    """FSDP2 of scripts/accelerate/fsdp2.yaml, on gloo, from the start and from a checkpoint in the middle."""
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2"))
    environment = {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    script = """
pretend_that_cpus_are_sharded()
checkpoint = sys.argv[2] if len(sys.argv) > 2 else None
trainer = train_curve(sys.argv[1], 2, checkpoint)
check_sharding(trainer)
os._exit(0)  # Sharded models hold the process group to the end, and gloo's threads with it: a pair that only this test makes.
"""
    on_two_processes(tmp_path, script, tmp_path / "two", **environment)
    on_two_processes(tmp_path, script, tmp_path / "resumed", tmp_path / "two" / "checkpoint-2", **environment)
    assert len(losses_of(single_curve)) == 4
    one = load_file(single_curve / "model.safetensors")
    for folder in (tmp_path / "two", tmp_path / "resumed"):
        assert losses_of(folder) == pytest.approx(losses_of(single_curve), rel=1e-4)
        torch.testing.assert_close(load_file(folder / "model.safetensors"), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chosen_tokens_on_two_processes_cost_what_they_do_on_one(sharded, tmp_path):
    """DDP, which refuses parameters without a gradient, and FSDP2. The scorer is as it was."""
    trainer = train_chosen(tmp_path / "one", 4)
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2")) if sharded else {}
    environment = {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    pretend = "pretend_that_cpus_are_sharded()\n" if sharded else ""
    check = (
        "from torch.distributed.fsdp import FSDPModule\nassert isinstance(trainer.model, FSDPModule)\n"
        if sharded
        else ""
    )
    script = f"{pretend}trainer = train_chosen(sys.argv[1], 2)\n{check}os._exit(0)\n"
    on_two_processes(tmp_path, script, tmp_path / "two", **environment)
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    scorer = {name: value for name, value in two.items() if "scorer" in name}
    assert len(scorer) == 4
    assert_same(scorer, {name: trainer.model.state_dict()[name] for name in scorer})


def killable(output_dir, kill_at=None):
    """Random starts, masks and dropout; a checkpoint every other step. The second process kills itself, and torchrun the rest."""
    from builders import make_trainer
    from transformers import TrainerCallback

    from transformers_lvmae.data import load_video_dataset

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == kill_at and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    options = {"num_train_epochs": 3, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2}
    torch.manual_seed(0)
    model = LVMAEForPreTraining(LVMAEConfig(**{**MODEL.to_dict(), "hidden_dropout_prob": 0.1}))
    splits = load_video_dataset(CLIPS, label_column="label")
    trainer = make_trainer("pretraining", splits, output_dir, model=model, warmup_steps=3, **options)
    trainer.add_callback(Kill())
    return trainer


@pytest.mark.slow
def test_a_killed_run_of_two_processes_ends_as_if_it_had_not_been(tmp_path):
    """Weights, optimizer, schedule, each process's random numbers and the losses, bit for bit."""
    train = "from transformers_lvmae.training.base import train_and_save\nkill_at = int(sys.argv[2]) or None\n"
    train += "trainer = killable(sys.argv[1], kill_at)\ntrain_and_save(trainer)\ntrainer.end()\n"
    with pytest.raises(AssertionError):
        on_two_processes(tmp_path, train, tmp_path / "killed", 7)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert (tmp_path / "killed" / "checkpoint-6" / "trainer_state.json").exists()
    for folder in ("killed", "whole"):
        on_two_processes(tmp_path, train, tmp_path / folder, 0)
    assert_same_ends(tmp_path / "killed" / "checkpoint-12", tmp_path / "whole" / "checkpoint-12")


def assert_same_ends(first, second):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        one, two = (torch.load(folder / name, weights_only=False) for folder in (first, second))
        if name.startswith("rng"):
            one, two = ({key: state[key] for key in ("python", "cpu")} for state in (one, two))
        assert_same(one, two)
    assert_same(*(load_file(folder / "model.safetensors") for folder in (first, second)))
    assert losses_of(first) == losses_of(second)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    FSQMagViTModel(TOKENIZER).save_pretrained(folder)
    return folder


def pretrain_command(tokenizer, output_dir, *options, **overrides):
    """Arguments of scripts/pretrain.py for the fixture's clips at tiny size; `overrides` are fields of the config."""
    sizes = {name: value for name, value in MODEL.to_diff_dict().items() if name in LVMAEConfig.__dataclass_fields__}
    sizes = {name: sizes[name] for name in sizes if name.endswith(("size", "heads", "frames")) or "layers" in name}
    command = ["--dataset_name", CLIPS, "--eval_split", "test", "--max_train_samples", 8, "--max_eval_samples", 2]
    command += ["--tokenizer", tokenizer, "--output_dir", output_dir, "--use_cpu", "true", "--report_to", "none"]
    command += ["--logging_steps", 1, "--per_device_train_batch_size", 4, "--disable_tqdm", "true"]
    if "--model_name_or_path" not in options:
        command += ["--config_overrides", json.dumps({**sizes, **overrides})]
    return [str(part) for part in (*command, *options)]


def pretrain(monkeypatch, *command, **overrides):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *pretrain_command(*command, **overrides)])
    load_script("pretrain").main()


def test_a_second_stage_starts_from_the_weights_of_the_first(tokenizer, tmp_path, monkeypatch):
    """A learning rate of 0 shows what it started from: the same weights, with a step count and an optimizer of its own."""
    big, downstream = tmp_path / "big", tmp_path / "downstream"
    pretrain(monkeypatch, tokenizer, big, "--max_steps", 2)
    options = ["--model_name_or_path", big, "--base_learning_rate", 0, "--max_steps", 1, "--save_steps", 1]
    pretrain(monkeypatch, tokenizer, downstream, *options)
    first, second = (load_file(folder / "model.safetensors") for folder in (big, downstream))
    assert_same(first, second)
    assert json.loads((downstream / "checkpoint-1" / "trainer_state.json").read_text())["global_step"] == 1
    assert LVMAEConfig.from_pretrained(downstream).to_diff_dict() == LVMAEConfig.from_pretrained(big).to_diff_dict()


@pytest.fixture(scope="module")
def plain_run(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        pretrain(patch, tokenizer, folder, "--max_steps", 2)
    return losses_of(folder)


CHECKPOINT_MLPS = ["--activation_checkpointing_kwargs", '{"mlp_only": true}']


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["--activation_checkpointing"], 1e-5),
        (["--activation_checkpointing", *CHECKPOINT_MLPS], 1e-5),
        (["--bf16"], 2e-2),
        pytest.param(["--torch_compile", "--torch_compile_backend", "aot_eager"], 1e-4, marks=pytest.mark.slow),
    ],
)
def test_the_switches_of_big_runs_change_no_loss(tokenizer, plain_run, tmp_path, monkeypatch, options, tolerance):
    pretrain(monkeypatch, tokenizer, tmp_path, "--max_steps", 2, *options)
    assert losses_of(tmp_path) == pytest.approx(plain_run, rel=tolerance)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "model.safetensors").values())


HOSTS = {"lvmae0": "10.77.0.1", "lvmae1": "10.77.0.2"}


def ip(*command):
    return subprocess.run(["ip", *command], capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Two network namespaces and a cable between them."""
    if shutil.which("ip") is None or ip("netns", "add", "lvmae0").returncode:
        pytest.skip("network namespaces need ip and the right to make them (root)")
    try:
        commands = ["netns add lvmae1", "link add lvmae0 netns lvmae0 type veth peer name lvmae1 netns lvmae1"]
        for host, address in HOSTS.items():
            commands += [f"-n {host} addr add {address}/24 dev {host}", f"-n {host} link set {host} up"]
            commands += [f"-n {host} link set lo up"]
        for command in commands:
            done = ip(*command.split())
            assert done.returncode == 0, done.stderr
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def start_on_hosts(command, logs):
    """As scripts/slurm/pretrain.sbatch: one launcher a host, one process each."""
    launchers = []
    for rank, host in enumerate(HOSTS):
        launch = ["ip", "netns", "exec", host, sys.executable, "-m", "accelerate.commands.launch"]
        launch += ["--config_file", CONFIGS / "ddp.yaml", "--num_machines", 2, "--machine_rank", rank]
        launch += ["--num_processes", 2, "--main_process_ip", HOSTS["lvmae0"], "--main_process_port", 29511]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": host, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["RES_OPTIONS"] = "timeout:1 attempts:1"  # no name server answers in there
        launch = [str(part) for part in (*launch, SCRIPTS / "pretrain.py", *command)]
        with open(f"{logs}-{rank}.log", "w") as log:
            launchers.append(subprocess.Popen(launch, env=environment, stdout=log, stderr=log, start_new_session=True))
    return launchers


def finish(launchers, logs):
    codes = [launcher.wait(timeout=900) for launcher in launchers]
    assert codes == [0, 0], "".join(Path(f"{logs}-{rank}.log").read_text()[-3000:] for rank in range(2))


@pytest.mark.slow
def test_two_hosts_train_are_lost_and_go_on(two_hosts, tokenizer, tmp_path):
    """Both hosts go down at once after a checkpoint; started again with the same command they end as a run that nothing befell."""
    options = ["--max_steps", 40, "--save_steps", 4, "--per_device_train_batch_size", 2]
    command = pretrain_command(tokenizer, tmp_path / "killed", *options, hidden_dropout_prob=0.1)
    launchers = start_on_hosts(command, tmp_path / "first")
    try:
        deadline = time.time() + 600
        while not (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists():
            assert time.time() < deadline
            assert all(launcher.poll() is None for launcher in launchers), (tmp_path / "first-0.log").read_text()[
                -3000:
            ]
            time.sleep(0.01)
    finally:
        for host in HOSTS:  # whole hosts: torchrun's workers outlive the launcher's process group
            for pid in ip("netns", "pids", host).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    written = (tmp_path / "killed" / "checkpoint-4" / "model.safetensors").stat().st_mtime_ns
    finish(start_on_hosts(command, tmp_path / "second"), tmp_path / "second")
    assert (tmp_path / "killed" / "checkpoint-4" / "model.safetensors").stat().st_mtime_ns == written  # not made anew
    whole = pretrain_command(tokenizer, tmp_path / "whole", *options, hidden_dropout_prob=0.1)
    finish(start_on_hosts(whole, tmp_path / "whole_run"), tmp_path / "whole_run")
    assert_same_ends(tmp_path / "killed" / "checkpoint-40", tmp_path / "whole" / "checkpoint-40")
