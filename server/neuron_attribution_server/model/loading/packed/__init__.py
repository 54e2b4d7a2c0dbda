"""Quantized checkpoints: which of their matrices stay packed, and how transformers loads those.

May import architectures; never another file of loading.
"""
