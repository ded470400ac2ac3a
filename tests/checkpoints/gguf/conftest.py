"""The small model of tests/support, for the tests of this room."""

from tests.support.gguf_models import save, tokenizer  # noqa: F401
