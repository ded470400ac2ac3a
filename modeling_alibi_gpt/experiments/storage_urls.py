"""Mask the passwords in storage URLs for display."""

import re
from urllib.parse import unquote_plus


MASK = "***"
# A password extends to the last @, because users may not percent-encode theirs; the query may contain another one.
_PASSWORD = re.compile(r"(?<=://)(?P<before>[^/?#@:]*:)(?P<password>.*)(?=@)", re.DOTALL)
_QUERY_PASSWORD = re.compile(
    r"(?P<before>[?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)(?P<password>[^&]*)", re.IGNORECASE
)


def shown_url(url: str) -> str:
    """A storage URL with masked passwords; also works for an invalid URL."""
    for pattern in (_PASSWORD, _QUERY_PASSWORD):
        url = pattern.sub(lambda found: f"{found['before']}{MASK}", url)
    return url


def without_password(text: str, url: str) -> str:
    """Mask the passwords of a storage URL in a text, such as the message of a database driver."""
    written = [found["password"] for pattern in (_PASSWORD, _QUERY_PASSWORD) for found in pattern.finditer(url)]
    # Drivers take the part after an unencoded @ for the host, and name it in messages.
    written += [part for password in written for part in password.split("@")]
    secrets = {*written, *map(unquote_plus, written)} - {""}
    text = text.replace(url, shown_url(url))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
