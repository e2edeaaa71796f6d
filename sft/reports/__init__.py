"""Pages about runs: charts, the report of a run, several runs compared. Made from files of run directories."""
