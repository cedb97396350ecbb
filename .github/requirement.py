"""The requirement of one package, as pyproject.toml has it: python .github/requirement.py NAME."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"].values()
listed = [*project["dependencies"], *(one for extra in extras for one in extra)]
print(next(one for one in listed if re.split(r"[\[<>=~! ]", one)[0] == sys.argv[1]))
