"""The base model as it comes, asked for rewrites by examples: what training adds is above this."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from model_store.text import normalise
from training.finetuning.model import base_arguments

EXAMPLES: tuple[tuple[str, str], ...] = (
    ("vaccum cleaner", "vacuum cleaner"),
    ("couch", "sofa"),
    ("kids bike 16 inch", "children's bicycle 16 in"),
    ("noise cancelling earphones", "headphones with noise cancellation"),
    ("wall clock large", "big wall clock"),
    ("water proof phone case", "waterproof cell phone cover"),
)
"""A misspelling, synonyms, units, word order, a joined word: what rewrites are like."""
TASK = "Each shopping search is followed by the same need in other words.\n\n"
MAX_TOKENS = 16
BATCH = 32


class PromptedBase:
    """Samples rewrites from a base model behind a few examples.

    Args:
        base: GGUF file or folder of the base.
        samples: rewrites drawn for each query, the first greedily.
        temperature: of the others.
        seed: of sampling.
    """

    def __init__(
        self, base: Path, *, samples: int = 4, temperature: float = 0.7, seed: int = 0
    ) -> None:
        where, extra = base_arguments(base)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(where, **extra)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **extra)
        self._model: Any = model.to(torch.bfloat16).eval()
        self._samples, self._temperature = samples, temperature
        self._random = torch.Generator().manual_seed(seed)
        self._ends = torch.tensor(
            [i for t, i in self._tokenizer.get_vocab().items() if "Ċ" in t or "\n" in t]
            + [i for i in (self._tokenizer.eos_token_id,) if i is not None]
        )
        shots = "".join(f"Search: {a}\nRewrite: {b}\n\n" for a, b in EXAMPLES)
        self._prefix = self._ids(TASK + shots + "Search:")
        with torch.no_grad():
            self._past = self._model.model(
                input_ids=torch.tensor([self._prefix]), past_key_values=DynamicCache()
            ).past_key_values

    def __call__(self, queries: Sequence[str]) -> dict[str, list[str]]:
        """Distinct rewrites of each query (normalised), greedy first; the query itself left out."""
        found = {}
        for start in tqdm(range(0, len(queries), BATCH), desc="prompting", unit="batch"):
            batch = queries[start : start + BATCH]
            texts = self._draw(batch)
            for index, query in enumerate(batch):
                own = texts[index * self._samples : (index + 1) * self._samples]
                forms = (normalise(text, fold_case=True) for text in own)
                found[query] = list(dict.fromkeys(f for f in forms if f and f != query))
        return found

    @torch.no_grad()
    def _draw(self, queries: Sequence[str]) -> list[str]:
        """``samples`` continuations of each query, side by side."""
        prompts = [self._ids(f" {q}\nRewrite:") for q in queries for _ in range(self._samples)]
        greedy = torch.arange(len(prompts)) % self._samples == 0
        width, before = max(map(len, prompts)), len(self._prefix)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        # The examples, which all see, and each prompt, filled up from the left.
        mask = torch.tensor([[1] * before + [0] * (width - len(p)) + [1] * len(p) for p in prompts])
        positions = (mask.cumsum(1) - 1)[:, before:].clamp(min=0)
        past = copy.deepcopy(self._past)
        past.batch_repeat_interleave(len(prompts))
        found: list[list[int]] = [[] for _ in prompts]
        going = torch.ones(len(prompts), dtype=torch.bool)
        for _ in range(MAX_TOKENS):
            hidden = self._model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past
            ).last_hidden_state[:, -1]
            logits = self._model.lm_head(hidden).float()
            drawn = torch.multinomial(
                torch.softmax(logits / self._temperature, dim=-1), 1, generator=self._random
            )[:, 0]
            chosen = torch.where(greedy, logits.argmax(-1), drawn)
            going &= ~torch.isin(chosen, self._ends)
            if not going.any():
                break
            for index in going.nonzero()[:, 0].tolist():
                found[index].append(int(chosen[index]))
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        return [self._tokenizer.decode(one, skip_special_tokens=True) for one in found]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
