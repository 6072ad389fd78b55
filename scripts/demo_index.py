"""Indexes the text files of a tar and finds for each the most similar one before it.

An ordinary program that scripts/demo sends round: it knows nothing of MOSIX. It reads real input
piece by piece, keeps an inverted index that grows, and prints a report in which every word counts.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import BinaryIO

WORD = re.compile(rb"[A-Za-z_][A-Za-z_0-9]{2,30}")
TEXT = (".py", ".h", ".hpp", ".txt", ".rst", ".md", ".html")


def texts(stream: BinaryIO) -> Iterator[tuple[str, Counter[bytes]]]:
    """Name and terms (words, and their beginnings) of every text file in the tar, which may be
    cut off."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(TEXT):
                    file = archive.extractfile(member)
                    if file is not None:
                        words = WORD.findall(file.read())
                        stems = (word[:size] for word in words for size in (3, 4, 5))
                        yield member.name, Counter(words) + Counter(stems)
    except tarfile.ReadError as error:
        if "unexpected end" not in str(error):
            raise


def main() -> None:
    names: list[str] = []
    index: defaultdict[bytes, list[tuple[int, float]]] = defaultdict(list)
    digest = hashlib.sha256()
    with open(sys.argv[1], "rb") as stream:
        for name, terms in texts(stream):
            length = math.sqrt(sum(count * count for count in terms.values())) or 1.0
            likeness: defaultdict[int, float] = defaultdict(float)
            for term, count in terms.items():
                postings = index[term]
                rarity = 1.0 / (1 + len(postings))
                for number, weight in postings:
                    likeness[number] += weight * count * rarity
                postings.append((len(names), count / length))
            best = max(likeness, key=lambda number: (likeness[number], number), default=None)
            digest.update(repr(sorted(likeness.items())).encode())
            print(
                f"{name}: {sum(terms.values())} terms, like {'-' if best is None else names[best]}"
            )
            names.append(name)
    print(f"{len(names)} files, {len(index)} terms, digest {digest.hexdigest()}")


if __name__ == "__main__":
    main()
