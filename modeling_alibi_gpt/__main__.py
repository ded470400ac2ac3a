"""The command line of transformers, with AlibiGPT known to it: ``python -m modeling_alibi_gpt serve FOLDER``."""

import transformers
from transformers.cli.transformers import main

from modeling_alibi_gpt import AlibiGPTForCausalLM


if __name__ == "__main__":
    # `serve` looks for the class of a checkpoint among the attributes of transformers, not in its Auto classes.
    transformers.AlibiGPTForCausalLM = AlibiGPTForCausalLM
    main()
