"""What /metrics says. Nothing is counted for it alone: each collector reads, when asked, what others have counted."""
