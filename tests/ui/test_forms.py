from django import forms
from django.template import Context, Template


class Form(forms.Form):
    title = forms.CharField(help_text="A name.")
    rounds = forms.IntegerField(required=False)
    mixed = forms.BooleanField(required=False, label="Mixed precision")
    sites = forms.MultipleChoiceField(choices=[("a", "A"), ("b", "B")], widget=forms.CheckboxSelectMultiple)
    token = forms.CharField(widget=forms.HiddenInput, required=False)

    def clean(self):
        raise forms.ValidationError("These do not go together <b>.")


def shown(data=None) -> str:
    form = Form(data)
    form.fields["rounds"].unit = "rounds"
    return Template("{{ form }}").render(Context({"form": form}))


def test_label_and_help_are_tied_to_the_control():
    page = shown()
    assert '<label class="field__label" for="id_title">Title' in page
    assert 'aria-describedby="id_title_helptext"' in page
    assert 'id="id_title_helptext">A name.' in page


def test_optional_fields_say_so_and_units_stand_behind_the_control():
    page = shown()
    assert page.count("field__optional") == 1  # rounds; a checkbox is optional by nature
    assert '<span class="field__unit">rounds</span>' in page


def test_choices_are_a_group_with_a_legend():
    assert '<legend class="field__label">Sites' in shown()


def test_refused_fields_are_marked_and_explained():
    page = shown({"title": ""})
    assert 'aria-invalid="true"' in page
    assert 'id="id_title_error"' in page
    assert "field--refused" in page


def test_what_concerns_the_whole_form_stands_first_and_is_escaped():
    page = shown({"title": "x", "sites": ["a"]})
    assert page.index("These do not go together &lt;b&gt;.") < page.index("id_title")


def test_hidden_fields_have_no_label():
    assert 'for="id_token"' not in shown()
