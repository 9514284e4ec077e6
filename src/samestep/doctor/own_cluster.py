"""This machine as a cluster of one host, with what was measured on it."""

import re

from samestep.doctor.facts import Facts
from samestep.doctor.machine_speed import MachineSpeed
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link, rounded

TO_FILL_IN = """
# More hosts are more [[host]] tables, or a count in this one. Links between hosts were not measured; fill them in:
# [between]
# latency = "50 us"
# bandwidth = "1 Gbit/s"
"""


def own_cluster(facts: Facts, measured: MachineSpeed) -> Cluster:
    """One worker per physical core. Memory is what the control group allows, and speeds have three digits."""
    memory = min(facts.memory.total, facts.control_group.memory or facts.memory.total)
    sent = measured.links.send.link
    host = Host(
        name=re.sub(r"[^\w.-]", "-", facts.host) or "host",
        cores=facts.processor.physical,
        workers=facts.processor.physical,
        memory=memory - memory % 10**6 or memory,
        flops=rounded(measured.products),
        memory_bandwidth=rounded(max(measured.copy, measured.copy_all)),
    )
    return Cluster((host,), within=Link(rounded(sent.latency), rounded(sent.bandwidth)))
