"""mosix.map and userview.map: what they mean, and complaints with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.config import Paths, parse_map
from mosix.config.nodemap import read_map
from mosix.errors import ConfigError, UnknownNodeError


def test_a_range_of_the_manual_names_consecutive_nodes() -> None:
    nodes = parse_map("# ours\n\n10.0.0.1 3 p\n10.0.1.254 4\n")
    assert len(nodes) == 7
    assert "10.0.0.3" in nodes
    assert "10.0.0.4" not in nodes
    assert "10.0.2.1" in nodes
    assert nodes.number_of("10.0.0.1") is None


def test_numbers_come_from_userview_map_or_from_the_line_itself() -> None:
    apart = parse_map("10.0.0.1 3", userview="7 10.0.0.1 3\n")
    together = parse_map("7 10.0.0.1 3")
    for nodes in (apart, together):
        assert nodes.number_of("10.0.0.2") == 8
        assert nodes.resolve("9") == "10.0.0.3"
        assert nodes.resolve("10.0.0.3") == "10.0.0.3"
        with pytest.raises(UnknownNodeError, match="no node number 10"):
            nodes.resolve("10")


def test_a_number_for_a_node_outside_of_the_map_is_not_a_node() -> None:
    nodes = parse_map("10.0.0.1 1", userview="1 10.0.0.1 2")
    with pytest.raises(UnknownNodeError, match=r"not in mosix\.map"):
        nodes.resolve("2")


def test_numbers_outside_of_the_map_are_named_with_file_and_line() -> None:
    nodes = parse_map(
        "10.0.0.1 3\n10.0.0.4 2\n10.9.9.9=10.0.0.2\n",
        userview="1 10.0.0.1 5\n\n# more\n30 10.9.9.9 1\n40 10.0.0.6 1\n50 9.255.255.255 1\n",
    )
    assert [(number, ip, line.number) for number, ip, line in nodes.nowhere()] == [
        (40, "10.0.0.6", 5),
        (50, "9.255.255.255", 6),
    ]
    partly = parse_map("10.0.0.1 3", userview="7 10.0.0.2 9\n")
    assert [(number, ip) for number, ip, _ in partly.nowhere()] == [(9, "10.0.0.4")]


def test_an_alias_is_the_same_node() -> None:
    nodes = parse_map("192.168.1.5=10.0.0.2\n1 10.0.0.1 2\n")
    assert "192.168.1.5" in nodes
    assert nodes.resolve("192.168.1.5") == "10.0.0.2"
    assert nodes.number_of("192.168.1.5") == 2


def test_the_right_side_of_an_alias_may_be_a_host_name() -> None:
    nodes = parse_map("127.0.0.1 1\n10.9.9.9 = localhost\n")
    assert nodes.resolve("10.9.9.9") == "127.0.0.1"


def test_flags_are_letters_or_words() -> None:
    for flags in ("p", "o", "po", "op", "proximate", "outsider"):
        assert parse_map(f"10.0.0.1 2 {flags}").ranges[0].flags == flags
    for flags in ("pp", "q", "proximat"):
        with pytest.raises(ConfigError, match="unknown flag"):
            parse_map(f"10.0.0.1 2 {flags}")


def test_flags_are_those_of_every_node_of_the_line() -> None:
    nodes = parse_map("1 10.0.0.1 2 o\n10.0.1.1 2 proximate\n10.0.2.1 1\n10.9.9.9=10.0.0.2\n")
    assert [nodes.outsider(ip) for ip in ("10.0.0.2", "10.9.9.9", "10.0.1.1", "10.0.9.9")] == [
        True,
        True,
        False,
        False,
    ]
    found = nodes.range_of("10.0.1.2")
    assert found is not None
    assert (found.proximate, found.outsider) == (True, False)
    assert nodes.number_of("10.0.0.2") == 2


def test_every_mistake_is_named_and_not_only_the_first(tmp_path: Path) -> None:
    (tmp_path / "mosix.map").write_text("10.0.0.1 4\n10.0.0.2 1\n10.0.1.1 x\n10.0.2.1 1 q\n")
    (tmp_path / "userview.map").write_text("1 10.0.0.1 1\n0 10.0.0.2 1\n")
    _, errors = read_map(Paths(tmp_path))
    assert [(error.path.name, error.number) for error in errors] == [
        ("mosix.map", 2),
        ("mosix.map", 3),
        ("mosix.map", 4),
        ("userview.map", 2),
    ]


def test_a_node_that_is_off_is_alone() -> None:
    alone = parse_map("1 10.0.0.1 9 p\n192.168.1.5=10.0.0.3\n").alone("192.168.1.5")
    assert alone.ips() == ["10.0.0.3"]
    assert alone.number_of("10.0.0.3") == 3
    with pytest.raises(UnknownNodeError, match="this node is off"):
        alone.resolve("2")


def test_an_alias_can_be_numbered_for_its_node() -> None:
    nodes = parse_map("192.168.1.5=10.0.0.2\n10.0.0.1 2\n", userview="3 192.168.1.5 1\n")
    assert nodes.resolve("3") == "10.0.0.2"
    assert nodes.number_of("10.0.0.2") == nodes.number_of("192.168.1.5") == 3
    assert nodes.number_of("10.0.0.1") is None


@pytest.mark.parametrize(
    ("userview", "said"),
    [
        ("0 10.0.0.1 1", "must be 1 to 65535"),
        ("65536 10.0.0.1 1", "must be 1 to 65535"),
        ("65535 10.0.0.1 2", "last node's number is larger than 65535"),
        ("1 10.0.0.1", "2 fields"),
        ("1 10.0.0.1 1 p", "4 fields"),
        ("1 10.0.0.1 0", "must be 1 to"),
        ("1 10.0.0.1 2\n2 10.0.0.9 1", "node numbers overlap"),
        ("1 10.0.0.1 2\n7 10.0.0.2 1", "two numbers"),
        ("1 no.such.host.invalid 1", "not known"),
        ("1 255.255.255.1 1", "cannot be a node"),
    ],
)
def test_a_mistake_in_userview_map_is_named_with_file_and_line(userview: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"userview\.map, line \d+") as error:
        parse_map("10.0.0.1 9", userview=userview)
    assert said in str(error.value)


def test_userview_map_numbers_as_few_or_as_many_as_wished() -> None:
    text = "# by name and by address\n\n1 localhost 1\n65534 127.0.0.3 2\n"
    nodes = parse_map("127.0.0.1 4", userview=text)
    assert nodes.resolve("1") == "127.0.0.1"
    assert nodes.resolve("65535") == "127.0.0.4"
    assert nodes.number_of("127.0.0.2") is None
    assert nodes.numbered() == 3


def test_host_names_are_looked_up() -> None:
    assert "127.0.0.1" in parse_map("localhost 1")
    assert parse_map("127.0.0.1 1").resolve("localhost") == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("10.0.0.1", 1, "1 fields"),
        ("\n#\n10.0.0.1 x", 3, "must be a number"),
        ("10.0.0.1 0", 1, "must be 1 to"),
        ("10.0.0.300 1", 1, "not an IPv4 address"),
        ("fe80::1 1", 1, "not an IPv4 address"),
        ("0.0.3.4 1", 1, "cannot be a node"),
        ("255.255.255.1 1", 1, "cannot be a node"),
        ("255.255.1.1 1", 1, "cannot be a node"),
        ("255.254.254.255 2", 1, "ends behind 255.254.254.255"),
        ("::1=10.0.0.1\n10.0.0.1 1", 1, "not an IPv4 address"),
        ("10.0.0.1 1\n10.9.9.9=::1", 2, "not an IPv4 address"),
        ("localhost=10.0.0.1\n10.0.0.1 1", 1, "not an address"),
        ("10.0.0.1 2\n10.0.0.2=10.0.0.1", 2, "a node itself, line 1"),
        ("10.0.0.1 2\n10.9.9.9=10.0.0.1\n10.9.9.9=10.0.0.2", 3, "an alias already"),
        ("10.0.0.1 1\n10.9.9.9=10.9.9.8\n10.9.9.8=10.0.0.1", 2, "not in the data lines"),
        ("10.0.0.1 1\n0.0.9.9=10.0.0.1", 2, "cannot be a node"),
        ("10.0.0.1 1 p o", 1, "4 fields"),
        ("1 10.0.0.1 1 x", 1, "unknown flag"),
        ("no.such.host.invalid 1", 1, "not known"),
        ("10.0.0.1 4 q", 1, "unknown flag"),
        ("10.0.0.1 4\n10.0.0.4 1", 2, "overlaps line 1"),
        ("1 10.0.0.1 4\n3 10.0.1.0 1", 2, "numbers overlap"),
        ("10.0.0.1 1\n10.9.9.9=10.0.0.2", 2, "not in the data lines"),
        ("0 10.0.0.1 1", 1, "must be 1 to 65535"),
        ("65535 10.0.0.1 2", 1, "larger than 65535"),
        ("10.0.0.1 1\n" * 257, 2, "overlaps"),
        ("\n".join(f"10.0.{i >> 8}.{i & 255} 1" for i in range(257)), 257, "more than 256"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_map(text, Path("/etc/mosix/mosix.map"))
    assert caught.value.message.startswith(f"/etc/mosix/mosix.map, line {line}: ")
    assert said in caught.value.message


def test_an_empty_map_is_no_map() -> None:
    with pytest.raises(ConfigError, match="names no node"):
        parse_map("# nobody\n")


@given(st.text(alphabet="0123456789. =#\npo/x-", max_size=200))
def test_any_text_is_a_map_or_a_complaint(text: str) -> None:
    try:
        nodes = parse_map(text.replace("x", ":"))
    except ConfigError as error:
        assert "mosix.map" in error.message
    else:
        assert len(nodes) >= 1


@given(st.text(max_size=30))
def test_any_name_is_a_node_or_unknown(name: str) -> None:
    nodes = parse_map("1 10.0.0.1 2")
    assert name not in nodes or name in ("10.0.0.1", "10.0.0.2")
    assert nodes.number_of(name) is None or name in ("10.0.0.1", "10.0.0.2")
    try:
        ip = nodes.resolve_number_or_ip(name)
    except UnknownNodeError:
        return
    assert ip in (None, "10.0.0.1", "10.0.0.2")
