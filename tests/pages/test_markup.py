"""What is written into a page stays where it was put."""

from __future__ import annotations

from tenp_edge.pages.markup import joined, tag


def test_text_and_attributes_are_escaped() -> None:
    made = tag("p", "</p><script>&", tag("b", 1), None, class_='a"><b', aria_hidden="true")
    assert made == (
        '<p class="a&#34;&gt;&lt;b" aria-hidden="true">&lt;/p&gt;&lt;script&gt;&amp;<b>1</b></p>'
    )


def test_attributes_without_a_value_void_elements_and_short_numbers() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("a", hidden=True, open=False, title=None) == "<a hidden></a>"
    assert tag("rect", x=1.0, y=0.333333) == '<rect x="1" y="0.33"></rect>'
    assert joined(["a", ["<", tag("i")]]) == "a&lt;<i></i>"
