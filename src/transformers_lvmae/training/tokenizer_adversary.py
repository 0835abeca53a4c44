"""The discriminator's optimizer and steps in the tokenizer's training."""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer, get_scheduler

from .arguments import FSQMagViTTrainingArguments
from .tokenizer_losses import AdversarialLoss


class Adversary:
    """The discriminator with its own optimizer and schedule.

    Both sides compute gradients from the same reconstructions, before either changes its weights, and then step together, as in
    MAGVIT. The discriminator's schedule starts with the adversarial term.
    """

    optimizer: Any = None
    scheduler: Any = None

    def __init__(self, losses: AdversarialLoss, args: FSQMagViTTrainingArguments, accelerator: Accelerator):
        self.losses = losses.to(args.device)
        self.wrapped: Any = self.losses
        self.args = args
        self.accelerator = accelerator

    def prepare(self, num_training_steps: int) -> None:
        """Build the optimizer and the schedule, and let accelerate place and wrap the discriminator; called before training."""
        args = self.args
        if self.optimizer is None:
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
            if args.discriminator_learning_rate is not None:
                options["lr"] = args.discriminator_learning_rate
            group = {"params": list(self.losses.parameters()), "weight_decay": args.weight_decay}
            self.wrapped, self.optimizer = self.accelerator.prepare(self.losses, optimizer_class([group], **options))
        steps = max(1, num_training_steps - args.adversarial_start_step)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )

    def backward(self, real: torch.Tensor, fake: torch.Tensor, accumulation_steps: int) -> dict[str, torch.Tensor]:
        """Add the gradients of one small batch of clips (B, T, C, H, W); return the terms of the loss."""
        synchronized = self.accelerator.sync_gradients
        with nullcontext() if synchronized else self.accelerator.no_sync(self.wrapped):
            parts = self.wrapped(real, fake)
            self.accelerator.backward(parts.pop("loss") / accumulation_steps)
        return parts

    def step(self) -> dict[str, torch.Tensor]:
        """Step once per step of the generator; return the norm of the gradient."""
        norm = self.accelerator.clip_grad_norm_(self.losses.parameters(), self.args.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return {"discriminator_grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        parts = {"losses": self.losses, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Files of version 0.1 also hold two running averages, which are not used any more.
        averages = {"average_real", "average_fake"}
        self.losses.load_state_dict({name: value for name, value in state["losses"].items() if name not in averages})
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
