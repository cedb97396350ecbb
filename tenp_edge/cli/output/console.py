"""The stream beside the result: progress and errors."""

from __future__ import annotations

from rich.console import Console

err = Console(stderr=True)
