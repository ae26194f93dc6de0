"""What the relevance team decides by hand: blocked queries, blocked terms, pinned rewrites."""

from service.overrides.live import Override, Overrides, overrides_document

__all__ = ["Override", "Overrides", "overrides_document"]
