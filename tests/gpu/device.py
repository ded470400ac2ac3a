"""Where the tests marked gpu run: on CUDA, or where a dry run says."""

import os


DEVICE = os.environ.get("ALIBI_GPT_TEST_DEVICE", "cuda")
