"""The command line: options, calls into `launch`, and results as text or JSON. It computes nothing itself.

No module here imports torch when it is imported.
"""
