"""Fixtures that several folders of tests share."""

from tests.full_disk import small_disk


__all__ = ["small_disk"]
