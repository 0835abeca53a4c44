"""The tokenizer's adversary, as in MAGVIT (appendix B.2 and its released code): discriminator, losses, optimizer and steps."""

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.func import functional_call
from transformers import Trainer, get_scheduler

from .arguments import FSQMagViTTrainingArguments


def halve(hidden_states: torch.Tensor) -> torch.Tensor:
    """Average over cells of 2 x 2 x 2: (B, C, T, H, W) -> (B, C, T / 2, H / 2, W / 2), rounded up."""
    cell = [min(2, length) for length in hidden_states.shape[2:]]
    # torch does not pool half precision on a CPU.
    full = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    return nn.functional.avg_pool3d(full, cell, ceil_mode=True, count_include_pad=False).to(hidden_states.dtype)


class DiscriminatorBlock(nn.Module):
    """A residual block that halves its input: two 3x3x3 convolutions, a 1x1x1 shortcut, and their sum over sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, in_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = halve(nn.functional.leaky_relu(self.conv1(hidden_states), 0.2))
        residual = nn.functional.leaky_relu(self.conv2(residual), 0.2)
        return (self.shortcut(halve(hidden_states)) + residual) / math.sqrt(2)


class VideoDiscriminator(nn.Module):
    """MAGVIT's 3D StyleGAN discriminator: one logit for each clip, higher = more likely real.

    Args:
        size: frames, height and width of the clips.
        num_channels: channels of a frame.
        base_channels: channels before the first halving (MAGVIT-B 64, L 128).
        channel_multipliers: channels after each halving of time, height and width, as multiples of `base_channels`.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        num_channels: int = 3,
        base_channels: int = 64,
        channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4),
    ):
        super().__init__()
        self.size = tuple(size)
        widths = [base_channels, *(base_channels * multiplier for multiplier in channel_multipliers)]
        cells = math.prod(math.ceil(length / 2 ** len(channel_multipliers)) for length in size)
        self.stem = nn.Conv3d(num_channels, base_channels, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList([DiscriminatorBlock(*pair) for pair in pairwise(widths)])
        self.conv = nn.Conv3d(widths[-1], widths[-1], kernel_size=3, padding=1)
        self.dense = nn.Linear(widths[-1] * cells, widths[-1])
        self.head = nn.Linear(widths[-1], 1)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return logits (B,) for clips (B, T, C, H, W) in about [0, 1]; raise ValueError on clips of another size than `size`."""
        size = (clips.shape[1], *clips.shape[3:])
        if size != self.size:
            raise ValueError(
                f"Got clips of {size} (frames, height, width), expected {self.size}: the discriminator is built for "
                "config.window_size and config.image_size, so train on such clips or change the config."
            )
        hidden_states = nn.functional.leaky_relu(self.stem(clips.transpose(1, 2)), 0.2)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        hidden_states = nn.functional.leaky_relu(self.conv(hidden_states), 0.2)
        return self.head(nn.functional.leaky_relu(self.dense(hidden_states.flatten(1)), 0.2)).squeeze(1)


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the non-saturating loss, the mean of -log sigmoid(D(fake)), of logits (B,)."""
    return nn.functional.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(D(real)) plus the mean of -log(1 - sigmoid(D(fake))), of logits (B,) each."""
    return nn.functional.softplus(-real_logits).mean() + nn.functional.softplus(fake_logits).mean()


def r1_penalty(real_logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return E |dD(x)/dx|^2 over real clips, with the sum over all pixels of a clip: a scalar that can be differentiated.

    As in MAGVIT, there is no factor 1/2 as in StyleGAN: a weight of 10 is StyleGAN's gamma = 20.

    Args:
        real_logits: (B,), made from `real`; each logit must depend on its own clip only.
        real: (B, ...), with `requires_grad`.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


class AdversarialLoss(nn.Module):
    """A discriminator with the losses of both sides; its forward is the discriminator's whole loss, because DDP needs one call.

    Args:
        discriminator: maps clips (B, T, C, H, W) to logits (B,); it has no norms that mix clips.
        r1_weight: weight of [`r1_penalty`], which is computed in every step as in MAGVIT.
    """

    def __init__(self, discriminator: nn.Module, r1_weight: float = 10.0):
        super().__init__()
        self.discriminator = discriminator
        self.r1_weight = r1_weight

    @torch.compiler.disable  # R1 differentiates twice, which compiled graphs cannot
    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the discriminator's `loss` on clips (B, T, C, H, W), its terms without weights, and the mean logits."""
        real = real.detach().requires_grad_(self.r1_weight > 0)
        real_logits, fake_logits = self.discriminator(real).float(), self.discriminator(fake.detach()).float()
        parts = {"discriminator_loss": discriminator_loss(real_logits, fake_logits)}
        loss = parts["discriminator_loss"]
        if self.r1_weight > 0:
            parts["r1_penalty"] = r1_penalty(real_logits, real)
            loss = loss + self.r1_weight * parts["r1_penalty"]
        logits = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, **logits}

    @torch.compiler.disable
    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """Return the generator's loss on clips (B, T, C, H, W); the discriminator's weights get no gradient from it."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return generator_loss(functional_call(self.discriminator, frozen, (fake,)).float())


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
