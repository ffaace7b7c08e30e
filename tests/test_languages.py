import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.errors import ConfigError
from layerbridge.languages import all_languages, describe, language, nearest_codes

ANY_LANGUAGE = st.deferred(lambda: st.sampled_from(all_languages()))


def test_there_are_205_languages_with_unique_codes():
    rows = all_languages()
    assert len(rows) == 205
    assert (
        len({row.code for row in rows}) == len({row.flores for row in rows}) == len({row.name for row in rows}) == 205
    )


def test_every_row_is_filled_in():
    for row in all_languages():
        assert re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?", row.code), row
        assert re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", row.flores), row
        assert row.script == row.flores[-4:]
        assert row.direction in ("ltr", "rtl")
        assert row.resource in (None, 0, 1, 2, 3, 4, 5)
        assert row.name == row.name.strip() != ""


@given(ANY_LANGUAGE)
def test_code_flores_code_and_name_find_the_language_in_any_case(row):
    for spelling in (row.code, row.flores, row.name):
        assert language(spelling) == language(spelling.upper()) == language(f" {spelling.lower()}") == row


@pytest.mark.parametrize(("bare", "code"), [("Arabic", "ar"), ("chinese", "zh"), ("Banjar", "bjn"), ("Kashmiri", "ks")])
def test_a_name_may_leave_out_its_parenthesis(bare, code):
    assert language(bare).code == code


def test_an_unknown_language_gets_the_nearest_and_how_to_list_all():
    with pytest.raises(ConfigError) as error:
        language("Sinhalese")
    message = str(error.value)
    assert "'Sinhalese'" in message
    assert "Sinhala (si)" in message
    assert "tasks show sib200" in message
    assert "205" in message
    assert len(message) < 400  # not all 205 of them


def test_a_language_unlike_any_gets_no_guess():
    with pytest.raises(ConfigError) as error:
        language("qqqqqqq")
    assert "Did you mean" not in str(error.value)


def test_nearest_codes_are_only_from_those_asked_for():
    assert nearest_codes("Tamill", ["si", "ta"]) == ["ta"]
    assert nearest_codes("Tamill", ["si"]) == []


def test_describe_leaves_a_foreign_code_alone():
    assert describe("si") == "Sinhala (si)"
    assert describe("xx") == "xx"
