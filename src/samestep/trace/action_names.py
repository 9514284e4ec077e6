"""Names of actions in pictures and tables."""

from samestep.schedule.actions import COMMUNICATION, Action, Receive, ReceiveGradient, Send, SendGradient, class_name
from samestep.schedule.draw import COMPUTING, bar_kind, shards_label


def name_of(action: Action) -> str:
    """As in the drawing of a schedule: "F0 seg 2", "B0-3 seg 1"; "Send F0 to 1"; else its class, "Reduce"."""
    if isinstance(action, COMPUTING):
        segment = getattr(action, "segment", None)
        return f"{bar_kind(action)}{shards_label(action)}" + ("" if segment is None else f" seg {segment}")
    if isinstance(action, Send | SendGradient):
        return f"Send {'F' if isinstance(action, Send) else 'B'}{action.shard} to {action.peer}"
    if isinstance(action, Receive | ReceiveGradient):
        return f"Receive {'F' if isinstance(action, Receive) else 'B'}{action.shard} from {action.peer}"
    return class_name(type(action))


def category_of(action: Action) -> str:
    return "communicate" if isinstance(action, COMMUNICATION) else "compute"
