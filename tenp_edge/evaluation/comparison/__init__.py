"""Methods side by side at equal bytes: many pruned models measured in one pass over the layers."""
