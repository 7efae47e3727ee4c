from __future__ import annotations

import warnings

import pytest

from accel.workbench.prompt import warn_unknown_words
from demos.shapes_wan.model import build_tokenizer


def test_words_that_the_model_does_not_know_are_named() -> None:
    with pytest.warns(UserWarning, match="does not know the words pink, cat and ignores them; it knows: a and"):
        warn_unknown_words(build_tokenizer(), "a pink cat moves left, cat")


def test_known_words_and_absent_tokenizers_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unknown_words(build_tokenizer(), "A small red circle, moves left!")
        warn_unknown_words(None, "anything")
