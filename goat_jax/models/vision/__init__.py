"""Vision towers, CLIP's text tower and zero-shot heads."""
