"""How fast networks run here: each beside the others in interleaved rounds, and beside what the machine can do."""
