"""What is kept: runs, attempts, workers and structures in a database, series and trajectories in files."""
