"""The doctor: facts and measured speed of one machine, as text, JSON or a cluster file.

It knows no job and no plan, and measures in a process of its own, so that the command needs no torch.
"""
