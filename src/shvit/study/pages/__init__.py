"""The report of each study: its numbers in tables, figures and sentences, next to the numbers of the paper."""
