"""Masks the passwords in storage URLs for display."""

import re
from urllib.parse import unquote_plus


MASK = "***"
# In the place of a password, up to the last @, for people do not quote the signs in theirs; and in the query.
_PASSWORD = re.compile(r"(?<=://)(?P<before>[^/?#@:]*:)(?P<password>.*)(?=@)", re.DOTALL)
_QUERY_PASSWORD = re.compile(
    r"(?P<before>[?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)(?P<password>[^&]*)", re.IGNORECASE
)


def shown_url(url: str) -> str:
    """A storage URL without its passwords, whether it can be parsed or not."""
    for pattern in (_PASSWORD, _QUERY_PASSWORD):
        url = pattern.sub(lambda found: f"{found['before']}{MASK}", url)
    return url


def without_password(text: str, url: str) -> str:
    """A text, such as the message of a database driver, in which the passwords of a storage URL are masked."""
    written = [found["password"] for pattern in (_PASSWORD, _QUERY_PASSWORD) for found in pattern.finditer(url)]
    # What stands behind an unquoted @ is a host to drivers, which name it.
    written += [part for password in written for part in password.split("@")]
    secrets = {*written, *map(unquote_plus, written)} - {""}
    text = text.replace(url, shown_url(url))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
