"""The redirector: programs whose every call is made by another process behave as natively."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from served import Kit, native, served


@pytest.fixture
def files(tmp_path: Path) -> Path:
    where = tmp_path / "home"
    where.mkdir()
    (where / "small").write_text("a few words\n")
    (where / "empty").touch()
    (where / "big").write_bytes(os.urandom(64) * 160_000)  # 10 MB: several pieces
    (where / "sub").mkdir()
    for i in range(300):
        (where / "sub" / f"file{i}").write_text(str(i))
    (where / "link").symlink_to("small")
    return where


TOOLS: list[list[str | Path]] = [
    ["cat", "small", "big"],
    ["ls", "-ln", "--time-style=full-iso", ".", "sub"],
    ["stat", "-c", "%n %s %b %f %u %g %h %i %y %z", "small", "link"],
    ["find", ".", "-type", "f", "-newer", "sub"],
    ["sha256sum", "big", "small"],
    ["dd", "if=big", "bs=9M", "status=none"],
    ["readlink", "link"],
    ["pwd"],
    ["sh", "-c", "read line < small; echo $line; test -d sub && echo yes"],
    ["tar", "cf", "-", "--sort=name", "sub"],
    ["sort", "-r", "small"],
    ["python3", "-ISc", "import os; print(sorted(os.listdir()), os.stat('big').st_size)"],
]


@pytest.mark.parametrize("command", TOOLS, ids=lambda c: " ".join(map(str, c))[:30])
async def test_a_tool_prints_what_it_prints_natively(
    kit: Kit, files: Path, tmp_path: Path, command: list[str | Path]
) -> None:
    status, expected = native(command, files)
    with (
        (tmp_path / "out").open("w+b") as out,
        served(kit, command, files, stdout=out.fileno()) as pair,
    ):
        assert await pair.serve() == status
        assert pair.homes == []
        out.seek(0)
        assert out.read() == expected
        assert pair.redirector.calls > 0


@pytest.mark.parametrize("killable", [True, False], ids=["killable", "without"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
async def test_calls_of_every_shape_return_what_they_return_natively(
    kit: Kit, files: Path, tmp_path: Path, static: bool, killable: bool
) -> None:
    binary = kit.build("many_calls", static=static)
    status, expected = native([binary], files)
    with (
        (tmp_path / "out").open("w+b") as out,
        served(kit, [binary], files, stdout=out.fileno(), killable=killable) as pair,
    ):
        assert await pair.serve() == status == 7
        assert pair.homes == []
        out.seek(0)
        assert out.read().decode().splitlines() == expected.decode().splitlines()
