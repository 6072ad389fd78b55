"""As checksum.c, in CPython: objects, dictionaries, big integers, floats, hashes."""

from __future__ import annotations

import hashlib
import os
import sys


def main() -> None:
    words: dict[int, list[float]] = {}
    digest = hashlib.sha256()
    number = 3
    rounds = 0
    while not (
        os.access(sys.argv[2], os.F_OK) if sys.argv[1] == "until" else rounds == int(sys.argv[2])
    ):
        for step in range(3000):
            number = (number * 6364136223846793005 + 1442695040888963407) % (1 << 521)
            key = number % 997
            words.setdefault(key, []).append(step / (1 + key))
            if len(words[key]) > 50:
                digest.update(repr(words.pop(key)).encode())
        if rounds % 16 == 0:
            print(f"round {rounds}: {digest.hexdigest()}", flush=True)
        rounds += 1
    total = sum(sum(values) for values in words.values())
    print(f"rounds {rounds} sum {digest.hexdigest()} {total.hex()} {number:x}")


if __name__ == "__main__":
    main()
