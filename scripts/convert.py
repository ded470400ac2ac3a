"""``alibi-gpt convert`` under the name that it has in a checkout."""

import sys
from functools import partial

from alibi_gpt_cli.main import run


main = partial(run, "convert")

if __name__ == "__main__":
    sys.exit(main())
