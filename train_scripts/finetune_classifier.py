"""Fine-tune embeddings that can be cut to any length on labelled texts, with a classifier on every prefix.

accelerate launch train_scripts/finetune_classifier.py --train_data INTENTS.csv [--flag value ...]
"""

from __future__ import annotations

import sys

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.training.classifier import main

if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:], prog="finetune_classifier.py")
