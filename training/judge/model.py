"""A judge of relevance: a small cross-encoder reads a query and a product's title together.

People graded few products of few queries. The judge learns from these grades and then grades any
pair, so that a rewrite can be rewarded, or measured, by products that nobody has judged. It is
made by :mod:`training.judge.train` and never serves traffic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model_store.files import files_under, mismatches, new_folder, spec_of
from model_store.manifest import FileSpec
from model_store.text import normalise
from training.errors import RunError

MAX_LENGTH = 48
"""Word pieces of a query and a title together; 99 % of Home Depot's pairs fit into 49."""
BATCH = 64
RECORD = "judge.json"

Pair = tuple[str, str]
"""A query and a product's title."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt's scaling: a raw score ``z`` (a logit) becomes ``1 / (1 + exp(-(slope z + shift)))``.

    Strictly increasing, so it changes no order. After Platt, "Probabilistic outputs for support
    vector machines" (1999), with graded instead of binary targets.

    Raises:
        RunError: the slope is not positive, so the raw scores say nothing of relevance.
    """

    slope: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (self.slope > 0 and math.isfinite(self.slope) and math.isfinite(self.shift)):
            raise RunError(
                f"a judge cannot be calibrated with slope {self.slope:.3g} and shift "
                f"{self.shift:.3g}: its scores do not rise with relevance; train it for longer"
            )

    def apply(self, raw: torch.Tensor) -> torch.Tensor:
        """Scores in [0, 1], of the shape of ``raw``."""
        return torch.sigmoid(self.slope * raw.double() + self.shift)


class Judge:
    """Relevance of products to queries.

    Args:
        model: a sequence classifier with one output.
        tokenizer: its tokenizer.
        calibration: of the model's output to graded relevance.
        max_length: word pieces of a pair; longer titles are cut.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        calibration: Calibration | None = None,
        max_length: int = MAX_LENGTH,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.calibration = calibration or Calibration()
        self.max_length = max_length

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Relevance of each (query, product title) in [0, 1], in the order of ``pairs``.

        The expected grade ``g`` (1 bad .. 3 perfect) as ``(g - 1) / 2``. Computed in bfloat16: the
        third decimal of a score depends on the pairs beside it.
        """
        return [float(s) for s in self.calibration.apply(self.raw(pairs))]

    def raw(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """The model's outputs before calibration, float32 of shape ``(len(pairs),)``."""
        raw = torch.empty(len(pairs))
        if not pairs:
            return raw
        encoded = encode(self.tokenizer, pairs, self.max_length)
        # Pairs of like length share a batch, so that little of it is padding.
        order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]["input_ids"]))
        device = self.model.device
        self.model.eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = collate([encoded[i] for i in rows], self.tokenizer.pad_token_id)
                inputs = {name: values.to(device) for name, values in batch.items()}
                raw[rows] = self.model(**inputs).logits[:, 0].float().cpu()
        return raw

    def save(self, folder: Path) -> None:
        """Write the weights, the tokenizer and ``judge.json``, which has every file's digest.

        The folder appears whole or not at all; a judge that is there is replaced.

        Raises:
            RunError: the folder exists and holds something else.
        """
        if folder.exists() and not (folder / RECORD).is_file():
            raise RunError(f"{folder} exists and holds no judge; choose another folder for it")
        with new_folder(folder) as temporary:
            self.model.save_pretrained(str(temporary))
            self.tokenizer.save_pretrained(str(temporary))
            record = {
                "format": 1,
                "max_length": self.max_length,
                "calibration": asdict(self.calibration),
                "files": {
                    name: spec_of(path).model_dump() for name, path in files_under(temporary)
                },
            }
            text = json.dumps(record, indent=1, sort_keys=True) + "\n"
            (temporary / RECORD).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read what :meth:`save` wrote.

        Raises:
            RunError: there is no judge, or a file was changed.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            files = {name: FileSpec.model_validate(f) for name, f in record["files"].items()}
            calibration = Calibration(**record["calibration"])
            max_length = int(record["max_length"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{folder} holds no judge that can be read ({error}); `requery judge` makes one"
            ) from error
        if problems := mismatches(folder, files):
            raise RunError(f"the judge in {folder} is damaged: {'; '.join(problems)}; make it anew")
        model = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(model.to(best_device()), tokenizer, calibration, max_length)


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> list[dict[str, list[int]]]:
    """Word pieces of each pair, not padded: query, separator, title; the title is cut if need be.

    Both are normalised first, because the service's queries are.
    """
    queries = [normalise(query, fold_case=True) for query, _ in pairs]
    titles = [normalise(title, fold_case=True) for _, title in pairs]
    # Half of the room is the title's, whatever the query.
    short = tokenizer(
        queries, add_special_tokens=False, truncation=True, max_length=max_length // 2
    )["input_ids"]
    long = tokenizer(titles, add_special_tokens=False, truncation=True, max_length=max_length)[
        "input_ids"
    ]
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    found = []
    for query, title in zip(short, long, strict=True):
        first = [begin, *query, end]
        second = [*title[: max_length - len(first) - 1], end]
        found.append(
            {
                "input_ids": first + second,
                "token_type_ids": [0] * len(first) + [1] * len(second),
                "attention_mask": [1] * (len(first) + len(second)),
            }
        )
    return found


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Encoded pairs as one batch: int64 tensors of shape (rows, longest row)."""
    columns = ("input_ids", "token_type_ids", "attention_mask")
    return {
        name: pad_sequence(
            [torch.tensor(row[name]) for row in rows],
            batch_first=True,
            padding_value=pad_id if name == "input_ids" else 0,
        )
        for name in columns
    }


def load_judge(folder: Path) -> Callable[[Sequence[Pair]], list[float]]:
    """The scores of a judge in a folder.

    Raises:
        RunError: the folder holds no readable judge.
    """
    return Judge.load(folder).score
