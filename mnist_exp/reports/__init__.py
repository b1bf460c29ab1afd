"""Comparison of runs from their directories: statistics, tables, figures, HTML, Markdown, CSV and a W&B report."""
