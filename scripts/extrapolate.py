"""``alibi-gpt extrapolate`` under the name that it has in a checkout."""

import sys
from collections.abc import Sequence

from alibi_gpt_cli.main import run


def main(arguments: Sequence[str] | None = None) -> int:
    return run("extrapolate", arguments)


if __name__ == "__main__":
    sys.exit(main())
