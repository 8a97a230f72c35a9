"""The paper's tables and figures: published scores, runs, drawings."""
