"""The process of a contender: it reads its spec from stdin, then takes its turns."""

from samestep.bench.contenders.contender_spec import OURS, read_spec
from samestep.bench.contenders.contender_turns import Pipes


def main(ask: str, answer: str) -> None:
    """Run a contender. ask, answer: paths of its pipes."""
    spec, pipes = read_spec(), Pipes(ask, answer)
    if spec.kind == OURS:
        from samestep.bench.contenders.own_contender import run_ours

        run_ours(spec.request, pipes)
    else:
        from samestep.bench.contenders.peers import run_peer

        run_peer(spec, pipes)
