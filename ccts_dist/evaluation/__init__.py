"""The evaluation of models on splits, clean and in noise: figures, tables and a page."""
