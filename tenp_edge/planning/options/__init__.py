"""What is asked of a plan: options declared once, methods, device profiles; resolved once."""
