"""How the API reads a request's body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

from trainer.contract import ContractError
from trainer.contract.checks import read_json


class PortalJSONParser(JSONParser):
    """Answers JSON that cannot be parsed, stored or sent back with 400: it is the sender's mistake, not a bug."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        data = stream.read(most + 1)
        if len(data) > most:
            raise RequestDataTooBig
        try:
            return read_json(data)
        except ContractError as error:
            raise ParseError(f"JSON parse error: {error}.") from error
