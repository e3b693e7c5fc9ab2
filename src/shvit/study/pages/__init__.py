"""What each study says: its numbers as tables, figures and sentences, next to the paper's own."""
