"""What a job tells of itself: the summary, and the report with its charts."""
