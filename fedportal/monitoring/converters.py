"""The key of an experiment in an address: eight letters and digits, so that ``/experiments/new/`` is not one."""

from django.urls import register_converter
from django.urls.converters import StringConverter


class KeyConverter(StringConverter):
    regex = "[a-hjkmnp-z2-9]{8}"


register_converter(KeyConverter, "experiment_key")
