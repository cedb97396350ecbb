from typing import Iterable, List, Optional, Tuple


def bracket_depths(text: str) -> Optional[List[int]]:
    """Depth of nesting at each opening bracket of ``text``, left to right.
    The brackets are (), [] and {}; anything else is ignored. Returns None when
    they do not match up.

    >>> bracket_depths("f(a[0], {b: (c)})")
    [1, 2, 2, 3]
    >>> bracket_depths("no brackets at all")
    []
    >>> bracket_depths("([)]") is None
    True
    >>> bracket_depths("((") is None
    True
    """
    partner = {")": "(", "]": "[", "}": "{"}
    open_now: List[str] = []
    depths = []
    for ch in text:
        if ch in "([{":
            open_now.append(ch)
            depths.append(len(open_now))
        elif ch in partner:
            if not open_now or open_now.pop() != partner[ch]:
                return None
    return None if open_now else depths


def shelve(widths: Iterable[int], shelf: int) -> List[List[int]]:
    """ Put books onto shelves in the order given. A new shelf starts as soon as
    the next book does not fit. A book wider than the shelf is an error.

    >>> shelve([4, 5, 3, 7, 2], 10)
    [[4, 5], [3, 7], [2]]
    >>> shelve([], 10)
    []
    >>> shelve([11], 10)
    Traceback (most recent call last):
        ...
    ValueError: book of width 11 on a shelf of 10
    """
    rows: List[List[int]] = []
    room = 0
    for w in widths:
        if w > shelf:
            raise ValueError(f"book of width {w} on a shelf of {shelf}")
        if w > room or not rows:
            rows.append([])
            room = shelf
        rows[-1].append(w)
        room -= w
    return rows


def longest_plateau(heights: List[float], tolerance: float = 0.0) -> Tuple[int, int]:
    """
    Start and length of the longest stretch in which every two values differ by
    at most `tolerance`. The earliest wins a tie. An empty list gives (0, 0).

    >>> longest_plateau([3, 3, 1, 1, 1, 2])
    (2, 3)
    >>> longest_plateau([3, 3, 1, 1, 1, 2], tolerance=1)
    (2, 4)
    >>> longest_plateau([])
    (0, 0)
    """
    from collections import deque

    lows, highs = deque(), deque()      # indices, values rising / falling
    best, left = (0, 0), 0
    for right, h in enumerate(heights):
        while lows and heights[lows[-1]] >= h:
            lows.pop()
        while highs and heights[highs[-1]] <= h:
            highs.pop()
        lows.append(right)
        highs.append(right)
        while heights[highs[0]] - heights[lows[0]] > tolerance:
            left += 1
            if lows[0] < left:
                lows.popleft()
            if highs[0] < left:
                highs.popleft()
        if right - left + 1 > best[1]:
            best = (left, right - left + 1)
    return best


def swap_case_words(sentence: str) -> str:
    """Every second word (starting with the second) gets its letter case swapped;
    the spacing stays exactly as it was.

    >>> swap_case_words("keep  Calm and CARRY on")
    'keep  cALM and carry on'
    """
    import re

    seen = 0

    def fix(m: "re.Match[str]") -> str:
        nonlocal seen
        seen += 1
        return m.group().swapcase() if seen % 2 == 0 else m.group()

    return re.sub(r"\S+", fix, sentence)


def count_visible(row: List[int]) -> int:
    """How many people in a queue see the stage at the front (index 0)? A person
    sees it when everybody ahead is strictly shorter.

    >>> count_visible([150, 160, 155, 170, 170, 171])
    4
    """
    tallest, visible = float("-inf"), 0
    for h in row:
        if h > tallest:
            visible += 1
            tallest = h
    return visible


if __name__ == "__main__":
    import doctest

    print(doctest.testmod())
