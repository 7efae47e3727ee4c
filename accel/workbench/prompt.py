"""Words that a model has never seen: it would draw something else without a word."""

from __future__ import annotations

import re
import warnings
from typing import Any

SMALL_VOCABULARY = 100


def warn_unknown_words(tokenizer: Any | None, prompt: str) -> None:
    """Warn once a call of the words that the tokenizer does not know, and name those it knows if they are few."""
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown_id is None:
        return
    words = dict.fromkeys(re.findall(r"\w+", prompt))
    unknown = [word for word in words if unknown_id in tokenizer(word, add_special_tokens=False)["input_ids"]]
    if not unknown:
        return
    known = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    hint = f"; it knows: {' '.join(known)}" if len(known) <= SMALL_VOCABULARY else ""
    warnings.warn(f"the model does not know the words {', '.join(unknown)} and ignores them{hint}", stacklevel=3)
