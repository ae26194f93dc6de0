"""Samples of the model as it stands, many queries at once.

Samples are drawn from merged weights, as the service draws them: the adapter's small matrices would
cost more than the model. Finished samples leave the batch, since most end long before the longest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import DynamicCache

from training.finetuning.model import Trainee

ADAPTER = "default"


class Sampler:
    """Draws completions from a trainee.

    Args:
        trainee: its model may go on learning; :meth:`refresh` takes over what it has learnt.
    """

    def __init__(self, trainee: Trainee) -> None:
        self._source = trainee.model.get_base_model()
        self._merged: Any = copy.deepcopy(trainee.model).merge_and_unload()
        self._merged.requires_grad_(requires_grad=False).eval()
        labels = trainee.prompts.labels
        self._stops = torch.tensor([labels.relevant, labels.irrelevant])
        self._pad_id = trainee.pad_id

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the trainee's weights, adapter merged."""
        for name, module in self._source.named_modules():
            if isinstance(module, LoraLayer):
                layer: Any = module
                weight = self._merged.get_submodule(name).weight
                delta = layer.get_delta_weight(ADAPTER)
                weight.copy_(layer.get_base_layer().weight.float() + delta.float())
            elif isinstance(module, TrainableTokensLayer) and module.tied_adapter is None:
                rows = module.trainable_tokens_delta[ADAPTER]
                where = list(module.token_indices[ADAPTER])
                table = self._merged.get_input_embeddings().weight
                table[where] = rows.to(table.dtype)

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int
    ) -> list[list[int]]:
        """One completion for each prompt.

        Args:
            prompts: token ids; repeat one to draw several.
            temperature: of the softmax over the whole vocabulary.
            max_tokens: of a completion, its tag included.

        Returns:
            token ids, each list ending with a label or after ``max_tokens``.
        """
        device = self._merged.device
        width = max(len(p) for p in prompts)
        ids = torch.tensor(
            [[self._pad_id] * (width - len(p)) + list(p) for p in prompts], device=device
        )
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        active = torch.arange(len(prompts), device=device)
        found: list[list[int]] = [[] for _ in prompts]
        past = DynamicCache()
        for step in range(max_tokens):
            hidden = self._merged.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits = self._merged.lm_head(hidden).float() / temperature
            chosen = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            for index, token in zip(active.tolist(), chosen[:, 0].tolist(), strict=True):
                found[index].append(token)
            on = ~torch.isin(chosen[:, 0], self._stops.to(device))
            if not on.any():
                break
            if not on.all():
                past.batch_select_indices(on.nonzero()[:, 0])
            active, ids = active[on], chosen[on]
            mask = torch.nn.functional.pad(mask[on], (0, 1), value=True)
            positions = (lengths[active] + step)[:, None]
        return found
