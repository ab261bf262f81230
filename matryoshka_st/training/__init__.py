"""Fine-tuning: a recipe (dataclasses, YAML, flags), sentence-transformers' trainer, and the folder a run leaves."""
