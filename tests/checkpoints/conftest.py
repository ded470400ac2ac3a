"""The checkpoint folders and the text of tests/support, for the tests of this room."""

from tests.support.checkpoint_folders import make_folder, source, text, tokenizer  # noqa: F401
