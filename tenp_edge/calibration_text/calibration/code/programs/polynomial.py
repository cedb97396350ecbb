"""Polynomials over the rationals with exact root counting (Sturm's theorem)."""

from __future__ import annotations

import unittest
from fractions import Fraction
from itertools import zip_longest


class Poly:
    """Immutable polynomial; ``Poly(1, 0, -2)`` is x² - 2 (highest power first)."""

    __slots__ = ("c",)

    def __init__(self, *coefficients):
        c = [Fraction(x) for x in coefficients]
        while c and c[0] == 0:
            c.pop(0)
        self.c = tuple(c)

    @property
    def degree(self) -> int:
        return len(self.c) - 1          # -1 for the zero polynomial

    def __bool__(self):
        return bool(self.c)

    def __eq__(self, other):
        return isinstance(other, Poly) and self.c == other.c

    def __hash__(self):
        return hash(self.c)

    def __call__(self, x):
        value = Fraction(0)
        for a in self.c:
            value = value * x + a
        return value

    def __neg__(self):
        return Poly(*(-a for a in self.c))

    def __sub__(self, other):
        pairs = zip_longest(self.c[::-1], other.c[::-1], fillvalue=0)
        return Poly(*[a - b for a, b in pairs][::-1])

    def __mul__(self, other):
        out = [Fraction(0)] * max(len(self.c) + len(other.c) - 1, 0)
        for i, a in enumerate(self.c):
            for j, b in enumerate(other.c):
                out[i + j] += a * b
        return Poly(*out)

    def divmod(self, other: Poly) -> tuple[Poly, Poly]:
        if not other:
            raise ZeroDivisionError("division by the zero polynomial")
        rest, quotient = list(self.c), []
        while len(rest) >= len(other.c):
            q = rest[0] / other.c[0]
            quotient.append(q)
            for i, b in enumerate(other.c):
                rest[i] -= q * b
            rest.pop(0)
        return Poly(*quotient), Poly(*rest)

    def derivative(self) -> Poly:
        n = self.degree
        return Poly(*(a * (n - i) for i, a in enumerate(self.c[:-1])))

    def sturm_chain(self) -> list[Poly]:
        chain = [self, self.derivative()]
        while chain[-1]:
            chain.append(-chain[-2].divmod(chain[-1])[1])
        return chain[:-1]

    def count_roots(self, low, high) -> int:
        """Number of distinct real roots in the half-open interval (low, high]."""
        if not self:
            raise ValueError("every number is a root of zero")
        if low >= high:
            raise ValueError("low must be below high")
        chain = self.sturm_chain()

        def changes(x):
            signs = [v > 0 for p in chain if (v := p(x)) != 0]
            return sum(a != b for a, b in zip(signs, signs[1:]))

        # Dividing out the gcd removes repeated roots, which would make all
        # members of the chain vanish at once when an endpoint is one of them.
        if chain[-1].degree > 0:
            return self.divmod(chain[-1])[0].count_roots(low, high)
        return changes(low) - changes(high)

    def __repr__(self):
        return f"Poly({', '.join(map(str, self.c))})"


class TestPoly(unittest.TestCase):
    def test_division_identity(self):
        p, d = Poly(2, -3, 0, 7, 1), Poly(1, 0, -2)
        q, r = p.divmod(d)
        self.assertEqual(p - q * d, r)
        self.assertLess(r.degree, d.degree)

    def test_square_root_of_two(self):
        p = Poly(1, 0, -2)
        self.assertEqual(p.count_roots(-2, 2), 2)
        self.assertEqual(p.count_roots(Fraction(141, 100), Fraction(142, 100)), 1)
        self.assertEqual(p.count_roots(2, 1000), 0)

    def test_half_open_at_both_ends(self):
        p = Poly(1, -1) * Poly(1, -3)
        self.assertEqual(p.count_roots(1, 3), 1)
        self.assertEqual(p.count_roots(0, 1), 1)

    def test_repeated_roots_count_once(self):
        p = Poly(1, -1) * Poly(1, -1) * Poly(1, 4)
        self.assertEqual(p.count_roots(-10, 10), 2)
        self.assertEqual(p.count_roots(0, 1), 1)

    def test_no_real_roots(self):
        self.assertEqual(Poly(1, 0, 1).count_roots(-50, 50), 0)

    def test_zero_is_refused(self):
        with self.assertRaises(ValueError):
            Poly(0, 0).count_roots(0, 1)


if __name__ == "__main__":
    unittest.main()
