"""Masked-language-model training of a BERT whose prefixes predict too: the paper's BERT-MRL (arXiv 2205.13147)."""
