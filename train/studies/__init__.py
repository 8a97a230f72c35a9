"""The study of methods at small size: its tasks, its runs, its statistics and its report."""
