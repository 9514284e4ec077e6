"""Explanation of a decision as text, HTML and drawings. It changes no decision and measures nothing."""
