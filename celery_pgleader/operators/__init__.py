"""What operators see of an election, and what they order: for the commands, and for the dashboard."""
