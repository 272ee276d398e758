"""How the web side's API answers an exception (`REST_FRAMEWORK["EXCEPTION_HANDLER"]`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.response import Response
from rest_framework.views import exception_handler

logger = logging.getLogger(__name__)


def answer_error(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """REST framework's own answer; 400 for JSON that is nested too deeply for Python's parser.

    That may be the body, or a part of a token in it. Neither REST framework nor simplejwt catches it.
    """
    if isinstance(error, RecursionError):
        logger.warning("request refused", extra={"reason": "nested too deeply"})
        error = ParseError("Nested too deeply.")
    return exception_handler(error, dict(context))
