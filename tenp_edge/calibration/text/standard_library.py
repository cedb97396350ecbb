"""Text that ships with every Python: `--data stdlib`, and what the demo model read.

Two domains that route differently: `code` (standard-library source) and `prose` (the help topics
of pydoc and the long docstrings of the standard library). A module or topic is held out by a hash
of its name, so training, calibration and evaluation agree on the split without a stored list and
across Python versions.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["calibration", "heldout"]

HELDOUT_PERCENT = 10
MIN_CHARS = 200
"""Shorter files and docstrings say little and would be many."""
MAX_CHARS = 500_000
"""Longer files are data, not writing."""

TOPICS_MODULE = "pydoc_data.topics"
TEST_PARTS = frozenset({"test", "tests", "idle_test"})
# Generated or tabular: a model learns their rows by heart and nothing else.
TABLE_MODULES = frozenset({TOPICS_MODULE, "html.entities", "stringprep", "_compat_pickle"})
TABLE_PREFIXES = ("encodings.", "_sysconfigdata")


def standard_library_texts(
    split: Split, *, include_tests: bool = False, root: Path | None = None
) -> dict[str, list[str]]:
    """Documents by domain, `code` and `prose`, in the order of their names.

    `include_tests` adds the source of Python's own test suite to `code` (training uses it; half
    of the distributions leave it out). `root` is the library directory, by default the running
    interpreter's. Parts that are not installed are simply absent from the result.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    code: list[str] = []
    prose: list[str] = []
    for name, path in _modules(root):
        if is_heldout(name) != (split == "heldout") or _is_table(name):
            continue
        is_test = not TEST_PARTS.isdisjoint(name.split("."))
        source = _read(path) if include_tests or not is_test else None
        if source is None:
            continue
        code.append(source)
        if not is_test:
            docstrings = "\n\n".join(long_docstrings(source))
            if docstrings:
                prose.append(docstrings)
    prose += [
        text
        for topic, text in sorted(_topics(root).items())
        if is_heldout(f"{TOPICS_MODULE}.{topic}") == (split == "heldout") and len(text) >= MIN_CHARS
    ]
    return {"code": code, "prose": prose}


def is_heldout(name: str) -> bool:
    """Whether a module's dotted name falls into the held-out tenth (stable across machines)."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELDOUT_PERCENT


def long_docstrings(source: str) -> list[str]:
    """The long docstrings of a module, its classes and functions, cleaned of indentation.

    Parsed, never imported: importing the standard library has side effects (`antigravity`,
    `this`, `idlelib`). Source this interpreter cannot parse has no docstrings.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    return [text for text in docstrings if len(text) >= MIN_CHARS]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted names and paths of the modules below `root`, sorted by name.

    A directory whose name is no identifier (site-packages, lib-dynload) cannot be a package.
    """
    modules: dict[str, Path] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if all(part.isidentifier() for part in parts):
            modules[".".join(parts).removesuffix(".__init__")] = path
    yield from sorted(modules.items())


def _is_table(name: str) -> bool:
    return name in TABLE_MODULES or name.startswith(TABLE_PREFIXES)


def _read(path: Path) -> str | None:
    """The file's text, or None where it is not UTF-8, cannot be read, or has an unfit length."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if MIN_CHARS <= len(text) <= MAX_CHARS else None


def _topics(root: Path) -> dict[str, str]:
    """pydoc's help topics, read from the dictionary literal that the module consists of."""
    path = root.joinpath(*TOPICS_MODULE.split(".")).with_suffix(".py")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError):
        return {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(key): str(value) for key, value in ast.literal_eval(node.value).items()}
    return {}
