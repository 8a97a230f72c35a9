"""Formats of questions, answers and conversations, which several tasks share."""
