"""Guess how a delimited text file is laid out, and say how sure we are.

The standard library's sniffer gives up too easily on the exports we get from
accounting (semicolons, decimal commas, a title line on top). This one scores
each candidate by how constant the number of fields per row is.
"""

import csv
import io
import statistics
from typing import NamedTuple

DELIMITERS = ",;\t|"


class Layout(NamedTuple):
    delimiter: str
    skip: int          # junk lines before the header
    columns: int
    decimal: str       # "." or ","
    score: float       # share of rows with exactly `columns` fields


def _widths(lines: list[str], delimiter: str) -> list[int]:
    return [len(row) for row in csv.reader(lines, delimiter=delimiter)]


def guess(text: str, sample: int = 200) -> Layout:
    lines = [s for s in text.splitlines()[:sample] if s.strip()]
    if not lines:
        raise ValueError("the file is empty")
    best = None
    for delim in DELIMITERS:
        widths = _widths(lines, delim)
        columns = statistics.mode(widths)
        if columns < 2:
            continue
        skip = widths.index(columns)
        body = widths[skip:]
        score = body.count(columns) / len(body)
        # Prefer more columns on equal scores: "1,5;2,5" has two readings.
        key = (score, columns)
        if best is None or key > (best.score, best.columns):
            best = Layout(delim, skip, columns, ".", score)
    if best is None:
        raise ValueError("no delimiter gives two columns or more")
    return best._replace(decimal=_decimal(lines[best.skip:], best.delimiter))


def _decimal(lines: list[str], delimiter: str) -> str:
    if delimiter == ",":
        return "."
    votes = {".": 0, ",": 0}
    for row in csv.reader(lines, delimiter=delimiter):
        for field in row:
            digits = field.strip().lstrip("-").replace(".", "").replace(",", "")
            if not digits.isdigit():
                continue
            # In 1.234,50 the last mark is the decimal one. A lone mark with
            # three digits after it could be either, so it does not vote.
            pos = max(field.rfind("."), field.rfind(","))
            lone = field.count(".") + field.count(",") == 1
            if pos >= 0 and not (lone and len(field.strip()) - pos - 1 == 3):
                votes[field[pos]] += 1
    return "," if votes[","] > votes["."] else "."


def read(text: str) -> list[dict[str, str]]:
    lay = guess(text)
    lines = [s for s in text.splitlines() if s.strip()][lay.skip:]
    return list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter=lay.delimiter))


EXPORT = """Open items as of 31.03.2024
Invoice;Customer;Amount
2024-017;"Fuchs; Söhne";1.190,00
2024-021;Tischlerei Adler;85,40
2024-022;Nordlicht e.V.;12,00
"""

if __name__ == "__main__":
    lay = guess(EXPORT)
    assert lay == Layout(";", 1, 3, ",", 1.0), lay
    assert read(EXPORT)[0]["Customer"] == "Fuchs; Söhne"
    assert guess("a\tb\n1\t2.5\n").delimiter == "\t"
    print(lay)
