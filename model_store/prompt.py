"""The one-pass prompt format: the stop token of a rewrite is its relevance tag.

Two tasks share one sequence (token level)::

    QUERY <query> REWRITE <rewrite> RELEVANT|IRRELEVANT

* rewrite task: the prompt is ``QUERY q REWRITE``; decoding stops at either label;
* tag task: the prompt is ``QUERY q REWRITE r``; the label probabilities are read at the next
  position.

So the relevance of a generated rewrite is the tag task's own answer, without an extra step.
Training and serving both use this module, which alone defines the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from model_store.errors import InvalidVersion
from model_store.manifest import PromptSpec
from model_store.text import normalise


@dataclass(frozen=True, slots=True)
class LabelIds:
    """Token ids of the two tags, which are also the two stop tokens."""

    relevant: int
    irrelevant: int


class PromptFormat:
    """Lays out token sequences for one version.

    Args:
        tokenizer: the version's tokenizer. It is switched to split special tokens, so that a
            query which contains ``<|im_end|>`` or a label's own text is only text.
        spec: the four marker tokens and the normal form, from the manifest.

    Raises:
        InvalidVersion: a marker is not a single token of the vocabulary, or two are the same.
    """

    def __init__(self, tokenizer: Tokenizer, spec: PromptSpec) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._spec = spec
        names = (spec.query, spec.rewrite, spec.relevant, spec.irrelevant)
        found = {name: tokenizer.token_to_id(name) for name in names}
        ids = [id_ for name in names if (id_ := found[name]) is not None]
        if missing := [name for name, id_ in found.items() if id_ is None]:
            raise InvalidVersion(f"prompt tokens {missing} are not in the base's vocabulary")
        if len(set(ids)) != len(ids):
            raise InvalidVersion(f"prompt tokens must be four different tokens, got {names}")
        self.query_id, self.rewrite_id = ids[0], ids[1]
        self.labels = LabelIds(relevant=ids[2], irrelevant=ids[3])

    @property
    def spec(self) -> PromptSpec:
        """The manifest's prompt section that this format was made from."""
        return self._spec

    def normalise(self, text: str) -> str:
        """Normal form of shopper text for this version."""
        return normalise(text, fold_case=self._spec.fold_case)

    def encode(self, text: str) -> list[int]:
        """Token ids of normalised text, as if in mid-sentence (a leading space)."""
        # A leading space gives a word the same tokens at the start as in the middle.
        return list(self._tokenizer.encode(" " + text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of many texts, on all cores."""
        rows = self._tokenizer.encode_batch([" " + t for t in texts], add_special_tokens=False)
        return [list(row.ids) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; marker and other special tokens vanish."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def rewrite_prompt(self, query: str) -> list[int]:
        """``QUERY q REWRITE`` for a normalised query."""
        return [self.query_id, *self.encode(query), self.rewrite_id]

    def tag_prompt(self, query: str, rewrite: str | Sequence[int]) -> list[int]:
        """``QUERY q REWRITE r`` for normalised text or for the very ids that were generated.

        Decoding and encoding again can split a word differently: pass ids to compare a
        standalone tag with the one given at generation.
        """
        ids = self.encode(rewrite) if isinstance(rewrite, str) else list(rewrite)
        return [*self.rewrite_prompt(query), *ids]
