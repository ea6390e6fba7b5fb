"""What is taken out of a text before it is split into tokens."""

import dataclasses
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnfast.text import ENGLISH, SPANISH, Cleaning, InputError


def test_without_options_a_text_stays_as_it_is():
    text = "Ñandú\r\n e\u0301"
    assert Cleaning()(text) == text
    assert Cleaning(lower=True)(text) == "ñandú\r\n e\u0301"


def test_every_run_of_other_characters_becomes_one_replacement():
    spanish = Cleaning(lower=True, keep=SPANISH)
    assert spanish("¡AQUÍ, sí!\n\nLa cigüeña 2.ª") == " aquí sí la cigüeña "
    assert Cleaning(keep="ab")("aAbB--ab") == "a b ab"
    assert Cleaning(keep="ab", replacement="")("aAbB--ab") == "abab"
    assert Cleaning(keep="ab", replacement="\\1<>")("a-b") == "a\\1<>b"
    assert Cleaning(lower=True, keep=ENGLISH + "\n")("One.\nTwo") == "one \ntwo"


def test_letters_are_composed_before_they_are_kept():
    assert Cleaning(keep=SPANISH)("an\u0303o") == "año"
    assert Cleaning(keep="n\u0303")("a\u00f1o") == " ñ "


def test_characters_with_a_meaning_in_patterns_are_kept_as_they_are():
    assert Cleaning(keep="]^-\\")("a]b^c-d\\e") == " ] ^ - \\ "
    assert Cleaning(keep="a-c")("abc-d") == "a c- "


@given(st.text(), st.text(min_size=1), st.booleans())
def test_cleaned_text_holds_only_what_is_kept_and_is_clean(text, keep, lower):
    cleaning = Cleaning(lower=lower, keep=keep + " ")
    cleaned = cleaning(text)
    assert set(cleaned) <= set(unicodedata.normalize("NFC", cleaning.keep))
    assert cleaning(cleaned) == cleaned


def test_values_of_other_types_are_refused():
    for options, message in (
        ({"lower": "yes"}, "lower must be True or False, got 'yes'"),
        ({"keep": ""}, "keep must be a string of the characters that stay, got ''"),
        ({"keep": ["a"]}, r"keep must be a string .*, got \['a'\]"),
        ({"keep": "a\ud800"}, "keep must be a string"),
        ({"replacement": None}, "replacement must be a string, got None"),
    ):
        with pytest.raises(InputError, match=message):
            Cleaning(**options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cleaning().lower = True
