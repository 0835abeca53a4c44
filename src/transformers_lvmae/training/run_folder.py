"""The output folder of a run: one run at a time, and the settings and data with which it may go on.

`run.json` holds the settings that change the result. It is compared when a run goes on.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments, logging

from ..files import write_aside
from .learning_rates import global_batch


try:
    import fcntl
except ImportError:  # Windows: a second run in a folder is not noticed
    fcntl = None  # type: ignore[assignment]


logger = logging.get_logger(__name__)

SETTINGS = "run.json"
LOCK = ".lock"
# Settings of transformers' `TrainingArguments` that change the result. All that our classes add count too.
TRAINING_SETTINGS = {
    *(
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "optim",
        "optim_args",
    ),
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed", "data_seed"),
    *("bf16", "fp16", "tf32", "label_smoothing_factor", "neftune_noise_alpha", "dataloader_drop_last"),
}
# Settings that change no weight. The data is compared by its rows, wherever it lies.
NO_SETTINGS = {
    *("allow_changes", "label_names", "logging_nan_inf_filter", "prediction_loss_only", "remove_unused_columns"),
    *("dataset_name", "eval_split", "test_split", "max_eval_samples", "on_error", "max_broken_share"),
    *("confine", "more_protocols", "max_video_bytes", "max_video_seconds"),
}


def settings_of(arguments: Any) -> dict[str, Any]:
    """Return the settings of a dataclass of arguments that change the result of a run, as JSON gives them back."""
    names = {item.name for item in fields(arguments)}
    if isinstance(arguments, TrainingArguments):
        names -= {item.name for item in fields(TrainingArguments)} - TRAINING_SETTINGS
    values = {name: getattr(arguments, name, None) for name in sorted(names - NO_SETTINGS)}
    return json.loads(json.dumps(values, default=str))


def run_settings(training_args: TrainingArguments, *others: Any) -> dict[str, Any]:
    """Return all settings of a run: of dataclasses, and of dicts such as the data's fingerprint. Batches count over all processes."""
    settings = settings_of(training_args)
    settings["global_batch"] = global_batch(training_args)
    for other in others:
        settings.update(settings_of(other) if is_dataclass(other) else json.loads(json.dumps(other, default=str)))
    return settings


def read_settings(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the settings with which a folder's run was started; None if they are not there or cannot be read."""
    path = Path(folder, SETTINGS)
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found.get("settings"), dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        logger.warning(f"{path} cannot be read, so the settings of the interrupted run are not compared.")
        return None


def write_settings(folder: str | os.PathLike, settings: dict[str, Any], processes: int) -> None:
    """Write the settings of a run, and its number of processes."""
    write_aside(Path(folder, SETTINGS), json.dumps({"processes": processes, "settings": settings}, indent=1) + "\n")


def keep_global_batch(args: Any, former: dict[str, Any]) -> None:
    """Change the accumulation if a run goes on with another number of processes, so that its steps stay as they were.

    Raises:
        ValueError: the former batch of a step is no multiple of this run's batches.
    """
    expected, processes = former["settings"].get("global_batch"), former.get("processes")
    if expected is None or processes == args.world_size or expected == global_batch(args):
        return
    steps, rest = divmod(expected, args.train_batch_size * args.world_size)
    if rest or not steps:
        raise ValueError(
            f"Got {args.world_size} processes with batches of {args.train_batch_size} videos for a run of {expected} videos a step "
            f"(on {processes} processes), expected the same number: use a --per_device_train_batch_size whose multiple on "
            f"{args.world_size} processes is {expected}, or --num_processes {processes}."
        )
    logger.warning(
        f"The run was on {processes} processes and goes on with {args.world_size}: gradient_accumulation_steps is {steps} now, which "
        f"keeps {expected} videos a step."
    )
    args.gradient_accumulation_steps = steps
    if args.base_learning_rate is not None:
        args.learning_rate = None
    args.set_learning_rate()


def check_settings(folder: str | os.PathLike, former: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ValueError with the list of the settings that differ from the interrupted run's."""
    before = former["settings"]
    differing = [name for name in settings if name in before and before[name] != settings[name]]
    if differing:
        listed = "; ".join(f"{name} was {before[name]!r} and is {settings[name]!r}" for name in differing)
        raise ValueError(
            f"Got {folder} with a run of other settings ({listed}), expected the same: give them again, another --output_dir, or "
            "--allow_changes to go on anyway."
        )


@contextmanager
def sole_run(folder: str | os.PathLike, accelerator: Accelerator) -> Iterator[None]:
    """Hold a folder while a run trains in it. The system lets it go when the main process ends, however it ends.

    Raises:
        ValueError: (on every process) another run holds it.
    """
    file, fault = None, [""]
    if accelerator.is_main_process:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder, LOCK), "a+")  # noqa: SIM115  it stays open as long as the run
        try:
            # This kind of lock is not inherited by the workers, which may outlive a killed process.
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "another process"
            fault = [
                f"Got {folder}, where {holder} is training, expected a folder without a run: wait for it or stop it."
            ]
        except OSError as error:  # some file systems have no locks
            logger.warning(f"{folder} cannot be held ({error}): a second run in it would not be noticed.")
    broadcast_object_list(fault)
    try:
        if fault[0]:
            raise ValueError(fault[0])
        yield
    finally:
        if file is not None:
            file.close()
