"""Credentials in addresses and arguments, which no log, error, report or card may show."""

import re


HIDDEN = "***"
# user:password@ of an address; a parameter or option such as X-Amz-Signature= or token=; a token of the Hub.
_USER = re.compile(r"(://)[^/\s?#'\"@]*(?:@[^/\s?#'\"@]*)*@")
SECRET_NAME = r"[\w.-]*(?:signature|credential|token|secret|password|passwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|auth(?:[_-]?key)?|key-pair-id)|sig|key|pass|pwd|policy"
_PARAMETER = re.compile(rf"(?i)(?<![\w.-])((?:{SECRET_NAME})=)[^&\s'\"#;,]+")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def mask_credentials(text: str) -> str:
    """Replace passwords, signatures and tokens in a text by `***`: in addresses, in `name=value`, and tokens of the Hub."""
    text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    return _HUB_TOKEN.sub(HIDDEN, _PARAMETER.sub(rf"\g<1>{HIDDEN}", text))
