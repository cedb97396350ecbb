"""The bundled text: one split everywhere, nothing held out ever read, odd installations survive."""

from pathlib import Path

import pytest

from tenp_edge.calibration.text.standard_library import (
    HELDOUT_PERCENT,
    Split,
    is_heldout,
    long_docstrings,
    standard_library_texts,
)

LONG = "A sentence that is long enough to be worth reading, ten times over." + " Again." * 100


def write(root: Path, name: str, text: str = f'"""{LONG}"""\n') -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def first_name(heldout: bool, prefix: str = "module") -> str:
    return next(f"{prefix}{i}" for i in range(1000) if is_heldout(f"{prefix}{i}") == heldout)


def test_split_is_the_same_on_every_machine() -> None:
    names = ("json", "asyncio", "argparse", "zipfile", "pathlib")
    assert [is_heldout(name) for name in names] == [True, True, False, True, False]
    share = sum(is_heldout(f"package.module{i}") for i in range(5000)) / 50
    assert share == pytest.approx(HELDOUT_PERCENT, abs=1.5)


def test_installed_library_gives_two_disjoint_domains_in_stable_order() -> None:
    calibration = standard_library_texts("calibration")
    heldout = standard_library_texts("heldout")
    assert list(calibration) == ["code", "prose"]
    for domain, documents in calibration.items():
        assert len(documents) > len(heldout[domain]) > 0
        assert not set(documents) & set(heldout[domain])
    assert heldout == standard_library_texts("heldout")


def test_source_and_docstrings_of_a_module_go_to_the_same_side(tmp_path: Path) -> None:
    kept, heldout = first_name(False), first_name(True)
    write(tmp_path, f"{kept}.py", f'"""Kept. {LONG}"""\n')
    write(tmp_path, f"{heldout}/__init__.py", f'"""Unseen. {LONG}"""\n')
    calibration = standard_library_texts("calibration", root=tmp_path)
    unseen = standard_library_texts("heldout", root=tmp_path)
    kept_text, unseen_text = f"Kept. {LONG}", f"Unseen. {LONG}"
    assert calibration == {"code": [f'"""{kept_text}"""\n'], "prose": [kept_text]}
    assert unseen == {"code": [f'"""{unseen_text}"""\n'], "prose": [unseen_text]}


def test_tests_tables_and_foreign_packages_are_left_out(tmp_path: Path) -> None:
    kept = first_name(False)
    write(tmp_path, f"{kept}.py")
    tested = first_name(False, "test.test_")
    write(tmp_path, tested.replace(".", "/") + ".py", f"# a test\n# {LONG}\n")
    for name in ("site-packages/foreign", "encodings/cp037", "html/entities", "lib-dynload/x"):
        write(tmp_path, f"{name}.py")
    write(tmp_path, "huge.py", "x = 1\n" * 200_000)
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9" + LONG.encode())
    splits: tuple[Split, Split] = ("calibration", "heldout")
    for split in splits:
        found = standard_library_texts(split, root=tmp_path)
        assert len(found["code"]) == len(found["prose"]) == (split == "calibration")
    with_tests = standard_library_texts("calibration", include_tests=True, root=tmp_path)
    assert len(with_tests["code"]) == 2
    assert len(with_tests["prose"]) == 1


def test_topics_are_split_by_name(tmp_path: Path) -> None:
    prefix = "pydoc_data.topics."
    names = [first_name(side, prefix).removeprefix(prefix) for side in (False, True)]
    topics = {name: f"{name}: {LONG}" for name in names}
    write(tmp_path, "pydoc_data/topics.py", f"topics = {topics!r}\n")
    splits: tuple[Split, Split] = ("calibration", "heldout")
    for split, name in zip(splits, names, strict=True):
        expected = {"code": [], "prose": [topics[name]]}
        assert standard_library_texts(split, root=tmp_path) == expected


def test_empty_library_gives_empty_domains(tmp_path: Path) -> None:
    assert standard_library_texts("heldout", root=tmp_path) == {"code": [], "prose": []}


def test_long_docstrings_are_cleaned_and_unparsable_source_has_none() -> None:
    docstring = f'"""{LONG}\n\n        Indented.\n    Not indented.\n    """'
    source = f"class A:\n    {docstring}\n    def f(self):\n        'Short.'\n"
    assert long_docstrings(source) == [f"{LONG}\n\n    Indented.\nNot indented."]
    assert long_docstrings("print 'Python 2'") == []
    assert long_docstrings("\0") == []
