"""A question asked of a fresh Python process, so that it has nothing of this one's memory and can
neither hurt it nor print into it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import tenp_edge
from tenp_edge.errors import UserError

Answer = Mapping[str, Any]
_REFUSED = 2
# A process whose parent was killed would go on for nobody: Linux can end it then. 1 is
# PR_SET_PDEATHSIG; elsewhere it ends when its answer is done.
_DIES_WITH_US = "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
_DIES_WITH_US = _DIES_WITH_US if sys.platform == "linux" else ""


class ChildError(Exception):
    """The process died; ``str()`` tells the exit status and the last line it wrote."""


def ask(question: Callable[[], None], facts: Answer, imports: tuple[str, ...] = ()) -> Answer:
    """What ``question`` (a function of a module, made with `answers`) makes of ``facts``.

    ``imports``: modules that the process is to hold in memory besides, by name, since this one
    need not hold them. Raises UserError as the function did, ChildError when the process did not
    get that far.
    """
    import subprocess  # neither in the child, whose memory is measured
    from importlib.util import find_spec

    for name in imports:
        assert find_spec(name) is not None, f"there is no module {name}"
    loaded = _DIES_WITH_US + "".join(f"import {name}; " for name in imports)
    module, function = question.__module__, question.__qualname__
    done = subprocess.run(
        [sys.executable, "-c", f"{loaded}from {module} import {function} as main; main()"],
        input=json.dumps(facts),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode == _REFUSED and lines:
        refusal = json.loads(lines[-1])
        raise UserError(refusal["message"], refusal["hint"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ChildError(f"exit {done.returncode}: {last}")
    answer: Answer = json.loads(lines[-1])
    return answer


def environment() -> dict[str, str]:
    """This process's, in which Python finds this very package."""
    root = str(Path(tenp_edge.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def answers(function: Callable[[Answer], Answer]) -> Callable[[], None]:
    """``function`` as a process's main: facts on stdin; the answer, or a UserError, on stdout."""

    @wraps(function)
    def main() -> None:
        try:
            answer, status = function(json.loads(sys.stdin.read())), 0
        except UserError as error:
            answer, status = {"message": error.message, "hint": error.hint}, _REFUSED
        print(json.dumps(answer), flush=True)
        # At once: what libraries do at exit is not part of the answer.
        os._exit(status)

    return main
