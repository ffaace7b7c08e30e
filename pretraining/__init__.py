"""Builds the embedded pair: a small multilingual encoder and a small English LM.

Nothing outside this folder imports it. `python -m pretraining.build --help` is the one
command; `README.md` describes the stages.
"""
