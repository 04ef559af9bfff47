"""Which weights does a checkpoint hold? Where the file is, what is in it, and which of it a network takes."""
