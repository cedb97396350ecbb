"""Shortest chain from one word to another, changing a letter at a time.

    $ python word_ladder.py /usr/share/dict/words warm cold
    warm ward card cord cold

Both ends are searched at once; the two frontiers meet in the middle, so far
fewer words are visited than from one end alone.
"""
import sys
from collections import defaultdict


def wildcard_index(words):
    """Bucket words by pattern: ``cold`` goes to ``_old``, ``c_ld`` and so on.

    Two words are neighbours exactly when they share a bucket, which avoids the
    quadratic comparison of all pairs.
    """
    buckets = defaultdict(list)
    for w in words:
        for i in range(len(w)):
            buckets[w[:i] + "_" + w[i + 1:]].append(w)
    return buckets


def ladder(words, start, goal):
    if len(start) != len(goal):
        return None
    if start == goal:
        return [start]
    pool = {w for w in words if len(w) == len(start)} | {start, goal}
    buckets = wildcard_index(pool)

    # parent maps for either direction; a frontier is a list of words
    seen = ({start: None}, {goal: None})
    frontier = [[start], [goal]]
    while frontier[0] and frontier[1]:
        side = 0 if len(frontier[0]) <= len(frontier[1]) else 1
        grown = []
        for w in frontier[side]:
            for i in range(len(w)):
                for n in buckets[w[:i] + "_" + w[i + 1:]]:
                    if n in seen[side]:
                        continue
                    seen[side][n] = w
                    if n in seen[1 - side]:
                        return _join(seen, n)
                    grown.append(n)
        frontier[side] = grown
    return None


def _join(seen, middle):
    left, w = [], middle
    while w is not None:
        left.append(w)
        w = seen[0][w]
    right, w = [], seen[1][middle]
    while w is not None:
        right.append(w)
        w = seen[1][w]
    return left[::-1] + right


def main():
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} WORDLIST FROM TO")
    with open(sys.argv[1], encoding="utf-8") as f:
        words = [w for w in map(str.strip, f) if w.isalpha() and w.islower()]
    chain = ladder(words, *sys.argv[2:])
    print(" ".join(chain) if chain else "no chain")


def test_ladder():
    tiny = "warm worm word ward card cord cold wold".split()
    chain = ladder(tiny, "warm", "cold")
    assert len(chain) == 5 and chain[0] == "warm" and chain[-1] == "cold"
    for a, b in zip(chain, chain[1:]):
        assert sum(x != y for x, y in zip(a, b)) == 1
    assert ladder(tiny, "warm", "zinc") is None
    assert ladder(tiny, "cord", "cord") == ["cord"]


if __name__ == "__main__":
    main()
