"""How much is said, and where: the result, progress, notes."""
