"""``python -m alibi_gpt_cli`` is ``alibi-gpt``."""

import sys

from alibi_gpt_cli.main import main


if __name__ == "__main__":
    sys.exit(main())
