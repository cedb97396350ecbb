"""The widest plan within a budget: a search over the sizes of one method, for types given."""
