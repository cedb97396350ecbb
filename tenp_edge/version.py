"""The tool's version: a leaf, so that whatever writes it down need not import the package root."""

from __future__ import annotations

__version__ = "0.2.0"
