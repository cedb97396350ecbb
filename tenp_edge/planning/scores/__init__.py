"""What the statistics say to the planner, as tables and as a file."""
