"""config check: everything that is wrong, with file and line; files are written all or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mosix.config import Paths, load, load_secret
from mosix.config.check import check, files_in
from mosix.config.install import Content, install
from mosix.errors import ConfigError

SECRET = "0123456789abcdef\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path / "etc", tmp_path / "run")
    install(found, {"mosix.map": Content("127.0.0.1 4\n"), "secret": Content(SECRET, 0o600)})
    return found


def complaints(paths: Paths) -> list[str]:
    return [
        str(finding).removeprefix(f"{paths.config_dir}/")
        for finding in check(paths)
        if finding.wrong
    ]


def test_right_files_are_right(paths: Paths) -> None:
    assert check(paths) == []
    assert files_in(paths) == ["mosix.map", "secret"]
    assert paths.secret.stat().st_mode & 0o777 == 0o600
    assert paths.partners.is_dir()
    assert paths.grid.is_dir()


def test_every_mistake_in_every_file_is_told_with_its_line(paths: Paths) -> None:
    paths.map.write_text("127.0.0.1 4\n127.0.0.3 1\nfe80::1 1\n")
    paths.userview.write_text("1 127.0.0.1 1\n1 127.0.0.2 1\n")
    paths.own_ip.write_text("# me\n127.0.0.0.1\n")
    paths.ports.write_text("gossip 7\n")
    paths.max_guests.write_text("many\n")
    paths.speed.write_text("0\n")
    paths.features.write_text("red\nred\n")
    paths.secret.chmod(0o644)
    found = complaints(paths)
    assert [line.partition(" ")[0] for line in found] == [
        "mosix.map:2:",
        "mosix.map:3:",
        "userview.map:2:",
        "ports:1:",
        "maxguests:1:",
        "speed:1:",
        "features:2:",
        "secret:",
    ]
    assert found[0] == "mosix.map:2: overlaps line 1 (name each node once)"
    paths.map.write_text("127.0.0.1 4\n")
    assert complaints(paths)[1].startswith("mosip:2: '127.0.0.0.1' is not an IPv4 address")
    paths.tuning.write_text("* 100 200 50 200\n127.0.0.9 1 1 1 1\n")
    assert "mostune:2: node 127.0.0.9 is not in mosix.map" in "".join(complaints(paths))
    paths.map.unlink()
    assert complaints(paths)[0].startswith("mosix.map: No such file")


def test_what_is_not_read_is_told_but_is_no_mistake(paths: Paths) -> None:
    paths.userview.write_text("1 127.0.0.1 1\n9 10.1.1.1 1\n")
    (paths.config_dir / "mosix.mpa").write_text("127.0.0.1 1\n")
    (paths.config_dir / "queue.conf").write_text("P 50\n")
    paths.grid.rmdir()
    assert complaints(paths) == []
    assert [Path(finding.path).name for finding in check(paths)] == [
        "userview.map",
        "grid",
        "mosix.mpa",
        "queue.conf",
    ]
    (paths.partners / "physics").write_text("")
    paths.grid.write_text("")
    assert complaints(paths) == [f"grid: not a directory (rm {paths.grid}; mkdir {paths.grid})"]


def test_a_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    (finding,) = check(Paths(tmp_path / "nowhere"))
    assert finding.reason == "no such directory"


@pytest.mark.parametrize(
    ("features", "mine", "said"),
    [
        ("red\n# more\nblue\n", "blue,red\n", ("red", "blue")),
        ("red\n", "", ()),
        ("", None, ()),
        (None, "wood, chicken", ("wood", "chicken")),
        ("\n".join(f"f{k}" for k in range(32)), "f31", ("f31",)),
        ("\n".join(f"f{k}" for k in range(33)), "f31", "features, line 33: more than 32"),
        ("red\n", "blue", "myfeatures, line 1: there is no feature 'blue'"),
        ("red\n", "red\nred\n", "myfeatures, line 2: more than one line"),
        ("red\n", "red,red", "myfeatures, line 1: 'red' twice"),
        ("red\n", "red,,", "myfeatures, line 1: a feature without a name"),
        ("red, blue\n", None, "features, line 1: 'red, blue' is no name"),
    ],
)
def test_features_are_those_of_the_list(
    paths: Paths, features: str | None, mine: str | None, said: tuple[str, ...] | str
) -> None:
    if features is not None:
        paths.features.write_text(features)
    if mine is not None:
        paths.own_features.write_text(mine)
    if isinstance(said, tuple):
        assert load(paths).features == said
        return
    with pytest.raises(ConfigError) as caught:
        load(paths)
    assert said in caught.value.message
    assert said.partition(",")[0] in "".join(complaints(paths))


def test_a_wrong_file_changes_none(paths: Paths) -> None:
    before = {path: path.read_text() for path in paths.config_dir.iterdir() if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        install(paths, {"mosix.map": Content("127.0.0.1 2\n"), "speed": Content("fast\n")})
    assert caught.value.message.startswith(f"{paths.speed}, line 1: ")
    with pytest.raises(ConfigError, match="mosip"):
        install(paths, {"mosip": Content("127.0.0.9\n")})
    assert before == {
        path: path.read_text() for path in paths.config_dir.iterdir() if path.is_file()
    }


def test_written_files_are_what_mosd_reads(paths: Paths) -> None:
    new = {
        "mosix.map": Content("127.0.0.2 3\n"),
        "mosip": Content("127.0.0.3\n"),
        "secret": Content("f" * 20 + "\n", 0o600),
        "maxguests": Content("7\n"),
    }
    assert install(paths, new) == []
    config = load(paths)
    assert (config.ip, config.max_guests, len(config.nodes)) == ("127.0.0.3", 7, 3)
    assert load_secret(paths) == b"f" * 20
    install(
        paths,
        {"mosip": Content(None), "maxguests": Content(None), "mosix.map": Content("127.0.0.1 1\n")},
    )
    assert files_in(paths) == ["mosix.map", "secret"]
