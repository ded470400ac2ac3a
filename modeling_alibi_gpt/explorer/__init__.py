"""Interactive pages about ALiBi: a static one that needs no model or network, and one that inspects checkpoints."""
