"""Other people's training scripts, run on one process and on several, watched without edits, and held together."""
