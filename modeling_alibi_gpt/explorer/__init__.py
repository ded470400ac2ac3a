"""Pages that show what ALiBi does: one that needs no model and no network, and one that looks into checkpoints."""
