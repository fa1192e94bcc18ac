"""A name is shown in lists, headings and sentences: it must be one line that visible and disturbs nothing."""

import pytest
from django.core.exceptions import ValidationError

from fedportal.ui.validators import visible_line


@pytest.mark.parametrize(
    "name", ["Brain tumours", "שלום עולם", "脳腫瘍", "🧠 👩‍⚕️", "'; DROP TABLE x; --", "<b>", "a" * 120]
)
def test_a_name_in_any_script_passes(name):
    visible_line(name)


@pytest.mark.parametrize("name", ["a\nb", "a\x07b", "a\u2028b", "\u202egnorw", "a\u2066b"])
def test_a_name_that_breaks_or_turns_its_line_is_refused(name):
    with pytest.raises(ValidationError, match="single line"):
        visible_line(name)


@pytest.mark.parametrize("name", ["\u200b", "\u00a0 \u2003", "\ufeff\u200d"])
def test_a_name_that_nobody_sees_is_refused(name):
    with pytest.raises(ValidationError, match="visible"):
        visible_line(name)
