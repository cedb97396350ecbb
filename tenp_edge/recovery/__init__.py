"""What makes a pruned model better again: reconstruction and healing."""
