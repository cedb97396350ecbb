"""Text to calibrate and measure on: where it comes from, and how it is cut."""
