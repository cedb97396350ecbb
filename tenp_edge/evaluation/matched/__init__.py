"""Ways to spend a number of bytes: whole models in few bits beside pruned ones in more."""
