"""The command line ``alibi-gpt``: one file per command.

A package of its own, because ``import modeling_alibi_gpt`` registers the model with transformers and so loads torch,
which takes seconds. Commands import both when they run; ``--help`` loads neither.
"""
