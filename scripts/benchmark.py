"""``alibi-gpt benchmark`` as a script of the repository."""

import sys
from functools import partial

from alibi_gpt_cli.main import run


main = partial(run, "benchmark")

if __name__ == "__main__":
    sys.exit(main())
