"""The cluster as data: stable as text, edited by hand, and refused with the place of what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import ClusterRefused, Refused
from samestep.plan.cluster import Cluster, Link
from samestep.plan.machine import Host

POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
LINKS = st.builds(Link, st.floats(min_value=0, allow_infinity=False), POSITIVE)
NAMES = st.one_of(st.text("ab01._-", min_size=1, max_size=4), st.integers(0, 12).map(lambda n: f"n{n}"))


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    workers = draw(st.integers(1, 4))
    return Host(
        draw(NAMES),
        draw(st.integers(1, 256)),
        workers,
        draw(st.integers(1, 1 << 50)),
        draw(st.one_of(st.just(()), st.tuples(*[POSITIVE] * workers))),
        draw(st.none() | POSITIVE),
        draw(st.none() | POSITIVE),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    members = draw(st.lists(hosts(), min_size=1, max_size=5, unique_by=lambda host: host.name))
    if draw(st.booleans()):  # hosts that are alike but for a number at the end
        first = replace(members[0], name="rack")
        members += [replace(first, name=f"rack{number}") for number in range(draw(st.integers(1, 12)))]
    names = st.sampled_from([host.name for host in members])
    links = draw(st.lists(st.tuples(names, names, LINKS), max_size=3, unique_by=lambda link: link[:2]))
    return Cluster(tuple(members), draw(LINKS), draw(LINKS), tuple(links))


@given(cluster=clusters())
def test_a_cluster_is_stable_as_text(cluster: Cluster) -> None:
    again = Cluster.parse(str(cluster))
    assert again == cluster
    assert str(again) == str(cluster)
    assert again.fingerprint() == cluster.fingerprint()


@given(cluster=clusters(), data=st.data())
def test_the_first_workers_are_where_they_were(cluster: Cluster, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, cluster.workers))
    first = cluster.first(n)
    assert first.workers == n
    assert first.hosts_of_workers() == cluster.hosts_of_workers()[:n]
    assert first.speeds == cluster.speeds[:n]
    pairs = [(a, b) for a in range(n) for b in range(n)]
    assert [first.link(a, b) for a, b in pairs] == [cluster.link(a, b) for a, b in pairs]
    assert Cluster.parse(str(first)) == first


TWO = """
    [[host]]
    name = "fast"
    cores = 4
    workers = 2
    memory = "16 GB"
    speeds = [1, 0.5]

    [[host]]
    name = "slow"
    count = 2
    cores = 1
    workers = 1
    memory = 4000000000
    flops = "10 GFLOP/s"
    memory_bandwidth = "8 GB/s"

    [within]
    latency = "3 us"
    bandwidth = "5 GB/s"

    [between]
    latency = 50e-6
    bandwidth = "1 Gbit/s"

    [[link]]
    from = "slow1"
    to = "fast"
    latency = "1 ms"
    bandwidth = "10 Mbit/s"
"""


def test_a_file_that_a_person_wrote() -> None:
    cluster = Cluster.parse(TWO)
    assert [host.name for host in cluster.hosts] == ["fast", "slow0", "slow1"]
    assert cluster.hosts[2] == Host("slow1", 1, 1, 4 * 10**9, (), 1e10, 8e9)
    assert cluster.workers == 4
    assert cluster.hosts_of_workers() == (0, 0, 1, 2)
    assert cluster.speeds == (1.0, 0.5, 1.0, 1.0)
    assert cluster.link(0, 1) == Link(3e-6, 5e9)
    assert cluster.link(1, 2) == Link(50e-6, 1.25e8)
    assert cluster.link(3, 0) == cluster.link(0, 3) == Link(1e-3, 1.25e6)


def test_each_direction_may_have_a_link_of_its_own_and_a_host_one_with_itself() -> None:
    down, up, own = Link(1.0, 1.0), Link(2.0, 2.0), Link(3.0, 3.0)
    links = (("slow1", "fast", up), ("fast", "slow1", down), ("fast", "fast", own))
    cluster = replace(Cluster.parse(TWO), links=links)
    assert [cluster.link(0, 3), cluster.link(3, 0), cluster.link(0, 1)] == [down, up, own]


def test_a_worker_alone_needs_no_link() -> None:
    alone = Cluster((Host("a", 1, 1, 1),))
    assert Cluster.parse(str(alone)) == alone


def test_many_hosts_are_one_table() -> None:
    text = str(Cluster(tuple(Host(f"n{i}", 8, 8, 1) for i in range(128)), Link(0, 1), Link(0, 1)))
    assert text.count("[[host]]") == 1
    assert "count = 128  # n0 to n127" in text
    assert Cluster.parse(text).workers == 1024


def test_another_link_is_another_fingerprint() -> None:
    cluster = Cluster.parse(TWO)
    other = replace(cluster, between=Link(50e-6, 1.26e8))
    assert cluster.fingerprint() != other.fingerprint()
    assert len(cluster.fingerprint()) == 12


def changed(old: str, new: str) -> Callable[[], str]:
    def text() -> str:
        assert old in TWO
        return TWO.replace(old, new, 1)

    return text


BETWEEN = '[between]\n    latency = 50e-6\n    bandwidth = "1 Gbit/s"\n'
WITHIN = '[within]\n    latency = "3 us"\n    bandwidth = "5 GB/s"\n'
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "not TOML": (lambda: "host: 3", "a.toml is not TOML"),
    "no hosts": (lambda: "[within]\nlatency = 0\nbandwidth = 1", "a.toml: host is missing"),
    "an empty list of hosts": (lambda: "host = []", "there is no host: write each under [[host]]"),
    "a host that is no table": (lambda: "host = [3]", "a.toml: host 0: 3 is no table"),
    "one host in single brackets": (lambda: '[host]\nname = "a"', "host = {'name': 'a'} is no list"),
    "an unknown table": (lambda: TWO + "[extra]", "unknown key extra (known: host, within, between, link)"),
    "an unknown key": (changed("cores = 4", "cores = 4\nram = 3"), "host 0: unknown key ram (known: name, count"),
    "an unknown key of a link": (changed("latency = 50e-6", "delay = 3"), "between: unknown key delay (known: latency"),
    "a missing key": (changed("cores = 4", ""), "a.toml: host 0: cores is missing (needed: name, cores, workers"),
    "a missing latency": (changed("latency = 50e-6", ""), "between: latency is missing"),
    "a missing end": (changed('from = "slow1"', ""), "link 0: from is missing"),
    "no workers": (changed("workers = 2", "workers = 0"), "host 0 (fast): workers = 0: a host has at least 1"),
    "no cores": (changed("cores = 4", "cores = 0"), "host 0 (fast): cores = 0: a host has at least 1"),
    "half a core": (changed("cores = 4", "cores = 0.5"), "cores = 0.5 is no int"),
    "True workers": (changed("workers = 2", "workers = true"), "workers = True is no int"),
    "no memory": (changed('"16 GB"', "0"), "host 0 (fast): memory = 0: a host has at least 1"),
    "memory in another unit": (changed('"16 GB"', '"16 Gb"'), "host 0 (fast): memory: '16 Gb' is neither"),
    "half a byte": (changed('"16 GB"', "0.5"), "memory: 0.5 is no whole number of B"),
    "speeds of another length": (changed("[1, 0.5]", "[1]"), "host 0 (fast): 1 speeds for 2 workers"),
    "a speed of 0": (changed("[1, 0.5]", "[1, 0]"), "speeds = 0.0: it must be above 0"),
    "a speed as text": (changed("[1, 0.5]", '[1, "2"]'), "host 0 (fast): speeds: '2' is neither"),
    "no host alike": (changed("count = 2", "count = 0"), "host 1 (slow): count = 0: from 1 to"),
    "too many hosts": (changed("count = 2", "count = 99999999"), "count = 99999999: from 1 to 1,000,000"),
    "too many workers": (changed("workers = 1", "workers = 999999"), "2,000,000 workers are more"),
    "a host twice": (changed('"fast"', '"slow1"'), "two hosts have the name slow1"),
    "a name with a space": (changed('"fast"', '"my host"'), "the name 'my host': use letters"),
    "flops of 0": (changed('"10 GFLOP/s"', "0"), "host 1 (slow): flops = 0.0: it must be above 0"),
    "a negative memory bandwidth": (changed('"8 GB/s"', "-1"), "memory_bandwidth = -1.0: it must be above 0"),
    "a negative bandwidth": (changed('"1 Gbit/s"', '"-1 Gbit/s"'), "between: bandwidth = -125000000.0: it must"),
    "a bandwidth of 0": (changed('"5 GB/s"', "0"), "within: bandwidth = 0.0: it must be above 0"),
    "a negative latency": (changed('"1 ms"', '"-1 ms"'), "link 0 (slow1 to fast): latency = -0.001: it must be"),
    "an endless latency": (changed('"1 ms"', "inf"), "latency: 'inf' is not a finite number"),
    "a link to nobody": (changed('to = "fast"', 'to = "slow"'), "names a host that is not there (hosts: fast"),
    "a link twice": (lambda: TWO + TWO[TWO.index("[[link]]") :], "two links go from the same host to the same host"),
    "no link between hosts": (changed(BETWEEN, ""), 'no link leads from fast to slow0: write [between] for all hosts'),
    "no link within a host": (changed(WITHIN, ""), "fast has 2 workers, and no link is between them: write [within]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_cluster_is_refused(case: str) -> None:
    text, says = REFUSED[case]
    with pytest.raises(ClusterRefused) as refused:
        Cluster.parse(text(), "a.toml")
    assert says in str(refused.value)
    assert str(refused.value).startswith("a.toml")
    assert isinstance(refused.value, Refused)


@pytest.mark.parametrize("n", [0, -1, 5])
def test_other_numbers_of_workers_than_there_are_cannot_be_taken(n: int) -> None:
    with pytest.raises(ClusterRefused, match=f"{n} workers of a cluster that has 4: choose 1 to 4"):
        Cluster.parse(TWO).first(n)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, says in (("absent", "cannot be read"), (".", "cannot be read"), ("binary", "is not text")):
        with pytest.raises(ClusterRefused, match=says):
            Cluster.read(tmp_path / name)
    (tmp_path / "good").write_text(TWO)
    assert Cluster.read(tmp_path / "good") == Cluster.parse(TWO)
