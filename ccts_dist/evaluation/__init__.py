"""What ``launch/evaluate.py`` does: models on splits, clean and in noise, then figures, tables and a page."""
