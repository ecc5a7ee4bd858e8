"""Many structures: what is read in which chunk."""
