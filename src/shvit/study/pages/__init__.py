"""The report of each study: tables, figures and sentences made from its numbers, next to the paper's."""
