"""What the commands do, one file a job. Each leaves its result in the run folder."""
