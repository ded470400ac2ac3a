"""``alibi-gpt evaluate`` as a script of the repository."""

import sys
from functools import partial

from alibi_gpt_cli.main import run


main = partial(run, "evaluate")

if __name__ == "__main__":
    sys.exit(main())
