"""Self-contained HTML reports with one look, for training, evaluation, audits and studies."""
