"""Diagnosis: advice from the traces of a run, and the worker that holds up a run, from views of all workers.

It thinks only: views and traces come in, sentences go out. It starts no process, reads no clock and sends no signal.
"""
