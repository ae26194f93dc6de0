"""The arithmetic of training: bfloat16 or float32, by one timed step of each on this machine.

Processors without instructions for bfloat16 emulate it, many times as slowly as they multiply
float32. The trained numbers are float32 either way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel

from training.recipe import DomainStage, GrpoStage, SftStage, Stage

Precision = Literal["bfloat16", "float32"]
Wanted = Literal["auto", "bfloat16", "float32"]

_TOKENS = 256
"""Of the timed step: a packed row."""
_GAIN = 0.8
_NOTICEABLE_S = 0.1
"""float32 must take less than this share of bfloat16's time, and less by so many seconds: else a
run and its resumption on the same machine could differ."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a run computes in.

    Attributes:
        precision: of products; sums, losses and the adapter are float32.
        reason: in words.
        seconds_per_token: of a training step; ``None`` if it was not timed.
    """

    precision: Precision
    reason: str
    seconds_per_token: float | None = None

    def told(self, stages: Sequence[Stage]) -> str:
        """One line: the choice, its reason, and how long the stages will take."""
        line = f"training in {self.precision}: {self.reason}"
        tokens = sum(map(trained_tokens, stages))
        if self.seconds_per_token is None or not tokens:
            return line
        took = in_words(tokens * self.seconds_per_token)
        rest = "" if all(isinstance(s, DomainStage | SftStage) for s in stages) else " or more"
        return f"{line}; what is left trains {tokens:,} tokens, about {took}{rest} on this machine"


def choose_precision(model: PeftModel, wanted: Wanted) -> Chosen:
    """Choose, and convert the frozen weights of ``model``.

    On a CPU ``auto`` times a step of each; the random state stays as it was.

    Args:
        model: with an adapter; frozen weights are in bfloat16.
        wanted: by the recipe or the option.
    """
    if wanted == "auto" and torch.cuda.is_available():
        return Chosen("bfloat16", "there is a GPU")
    took: dict[Precision, float] = {}
    with torch.random.fork_rng(devices=[]):
        for precision in ("float32", "bfloat16") if wanted == "auto" else (wanted,):
            convert(model, precision)
            took[precision] = _step(model, precision, patience_s=3 * took.get("float32", 60.0))
    if wanted != "auto":
        return Chosen(wanted, "as asked", took[wanted] / _TOKENS)
    slow, fast = took["bfloat16"], took["float32"]
    better = fast < _GAIN * slow and slow - fast > _NOTICEABLE_S
    chosen: Precision = "float32" if better else "bfloat16"
    convert(model, chosen)
    reason = f"a step of {_TOKENS} tokens takes {slow:.2f} s in bfloat16, {fast:.2f} s in float32"
    return Chosen(chosen, reason, took[chosen] / _TOKENS)


def convert(model: PeftModel, precision: Precision) -> None:
    """Hold the frozen weights in ``precision``; what is trained stays float32."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def trained_tokens(stage: Stage) -> int:
    """Tokens that a stage trains on, about; 0 where that is not known before."""
    if isinstance(stage, DomainStage | SftStage):
        return stage.tokens
    if isinstance(stage, GrpoStage):
        # A sample has some 20 tokens with its prompt; drawing it and the reference cost as much.
        return stage.steps * (
            stage.queries_per_step * stage.group * 40 + stage.tag_rows * stage.row_tokens
        )
    return 0


def in_words(seconds: float) -> str:
    """``2 h 10 min``, ``12 min`` or ``40 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _step(model: PeftModel, precision: Precision, *, patience_s: float) -> float:
    """Seconds of a forward and a backward pass; a first one that takes too long counts."""
    base: Any = model.get_base_model()
    device = next(base.parameters()).device
    ids = torch.randint(0, base.config.vocab_size, (1, _TOKENS), device=device)
    took = 0.0
    for _ in range(2):
        begun = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[:, ::4])
        logits.float().square().mean().backward()
        model.zero_grad(set_to_none=True)
        took = time.monotonic() - begun
        if took > patience_s:
            break
    return took
