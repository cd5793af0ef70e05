"""What a job will take, told before it runs."""
