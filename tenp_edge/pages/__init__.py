"""Pages that open without a network: the report of a run, the tables of a comparison."""
