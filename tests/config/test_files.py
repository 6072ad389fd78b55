"""secret, mosip and ports: unsafe or wrong ones are named and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mosix.config import (
    DEFAULT_GRACE_S,
    DEFAULT_MAX_GUESTS,
    DEFAULT_PEER_PORT,
    Paths,
    load,
    load_secret,
)
from mosix.errors import ConfigError

GOOD = "0123456789abcdef"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "mosix.map").write_text("127.0.0.1 4\n")
    (tmp_path / "secret").write_text(f"{GOOD}\n")
    (tmp_path / "secret").chmod(0o600)
    return Paths(tmp_path, tmp_path / "run")


def refused(paths: Paths) -> str:
    with pytest.raises(ConfigError) as caught:
        load_secret(paths)
    assert str(paths.secret) in caught.value.message
    assert caught.value.hint
    assert "0123" not in caught.value.line()
    return caught.value.message


def test_a_good_secret_is_its_line(paths: Paths) -> None:
    assert load_secret(paths) == GOOD.encode()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_can_reach_is_refused(paths: Paths, mode: int) -> None:
    paths.secret.chmod(mode)
    assert f"mode {mode:03o}" in refused(paths)


@pytest.mark.parametrize(
    ("text", "said"),
    [("0123456789abcde\n", "shorter than 16"), ("", "shorter"), (f"{GOOD}\n{GOOD}\n", "one line")],
)
def test_a_poor_secret_is_refused(paths: Paths, text: str, said: str) -> None:
    paths.secret.write_text(text)
    assert said in refused(paths)


def test_a_missing_secret_is_named(paths: Paths) -> None:
    paths.secret.unlink()
    assert "No such file" in refused(paths)


def test_a_secret_must_be_a_plain_file_of_root(paths: Paths, tmp_path: Path) -> None:
    os.chown(paths.secret, 1234, -1)
    assert "uid 1234" in refused(paths)
    paths.secret.rename(tmp_path / "elsewhere")
    paths.secret.symlink_to(tmp_path / "elsewhere")
    refused(paths)
    paths.secret.unlink()
    os.mkfifo(paths.secret, 0o600)
    assert "not a plain file" in refused(paths)


def test_the_own_address_is_found_among_the_interfaces(paths: Paths) -> None:
    paths.map.write_text("127.0.0.1 1\n10.255.254.1 2\n")
    config = load(paths)
    assert config.ip == "127.0.0.1"
    assert config.peer_port == DEFAULT_PEER_PORT


def test_mosip_wins_and_must_be_in_the_map(paths: Paths) -> None:
    paths.own_ip.write_text("127.0.0.3\n")
    assert load(paths).ip == "127.0.0.3"
    paths.own_ip.write_text("127.0.0.9\n")
    with pytest.raises(ConfigError, match=r"mosip, line 1: 127.0.0.9 is not in"):
        load(paths)
    paths.own_ip.write_text("one two\n")
    with pytest.raises(ConfigError, match="just one address"):
        load(paths)


def test_several_own_addresses_in_the_map_need_mosip(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["10.1.1.1", "10.1.1.2"]
    monkeypatch.setattr("mosix.config.node.interface_ips", lambda: own)
    paths.map.write_text("10.1.1.1 2\n")
    with pytest.raises(ConfigError, match=r"several addresses of this machine are in .*mosix\.map"):
        load(paths)
    paths.own_ip.write_text("10.1.1.2\n")
    assert load(paths).ip == "10.1.1.2"
    paths.own_ip.unlink()
    paths.map.write_text("10.1.1.1 1\n10.1.1.2=10.1.1.1\n")
    assert load(paths).ip == "10.1.1.1"  # two addresses of one node


def test_mosip_may_be_an_alias_of_the_nodes_address(paths: Paths) -> None:
    paths.map.write_text("127.0.0.1 1\n127.0.0.77=127.0.0.1\n")
    paths.own_ip.write_text("127.0.0.77\n")
    assert load(paths).ip == "127.0.0.1"


def test_a_node_that_the_map_does_not_know_is_told(paths: Paths) -> None:
    paths.map.write_text("10.255.254.1 2\n")
    with pytest.raises(ConfigError, match="no address of this machine"):
        load(paths)


def test_the_own_node_is_no_outsider(paths: Paths) -> None:
    paths.map.write_text("127.0.0.1 1 o\n")
    with pytest.raises(ConfigError, match=r"mosix.map, line 1: .*outsider"):
        load(paths)
    paths.map.write_text("127.0.0.1 1 proximate\n")
    load(paths)


def test_the_port_is_configurable(paths: Paths) -> None:
    paths.ports.write_text("# ours\npeer 2490\n")
    assert load(paths).peer_port == 2490
    assert load(paths, 17).peer_port == 17
    paths.ports.write_text("gossip 1\n")
    with pytest.raises(ConfigError, match=r"ports, line 1: 'gossip 1' is not a port"):
        load(paths)


def test_the_grace_is_a_number_of_seconds_and_an_option_goes_before(paths: Paths) -> None:
    assert load(paths).grace_s == DEFAULT_GRACE_S
    paths.grace.write_text("5\n")
    assert (load(paths).grace_s, load(paths, grace_s=0).grace_s) == (5, 0)
    paths.grace.write_text("a minute\n")
    with pytest.raises(
        ConfigError, match=r"grace, line 1: the grace, in seconds, must be a number"
    ):
        load(paths)


def test_the_limit_of_guests_and_the_speed_are_one_number_each(paths: Paths) -> None:
    assert (load(paths).max_guests, load(paths).speed) == (DEFAULT_MAX_GUESTS, None)
    paths.max_guests.write_text("# none\n0\n")
    paths.speed.write_text("12000\n")
    assert (load(paths).max_guests, load(paths).speed) == (0, 12000)
    for path, text, said in (
        (paths.max_guests, "4097", r"maxguests, line 1: the number of guests must be 0 to 4096"),
        (paths.max_guests, "-1", r"maxguests, line 1: .* must be a number"),
        (paths.speed, "0", r"speed, line 1: the speed must be 1 to 10000000, not 0"),
        (paths.speed, "1\n2", r"speed: must hold just one number"),
        (paths.speed, "", r"speed: must hold just one number"),
    ):
        kept = path.read_text()
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load(paths)
        path.write_text(kept)


def test_missing_files_and_directories_are_named(paths: Paths, tmp_path: Path) -> None:
    paths.map.unlink()
    with pytest.raises(ConfigError, match=r"mosix\.map: No such file"):
        load(paths)
    with pytest.raises(ConfigError, match="no such directory"):
        load(Paths(tmp_path / "nowhere"))


def test_options_win_over_the_environment() -> None:
    environment = {"MOSIX_CONFIG_DIR": "/a", "MOSIX_RUN_DIR": "/b"}
    assert Paths.choose("/c", None, environment) == Paths(Path("/c"), Path("/b"))
    assert Paths.choose(environ={}) == Paths(Path("/etc/mosix"), Path("/run/mosix"))
