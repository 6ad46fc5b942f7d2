"""What does units of work: this process, or a Spark cluster."""
