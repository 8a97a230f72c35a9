"""Multi-process training: joining processes, agreeing to stop, and ending together."""
