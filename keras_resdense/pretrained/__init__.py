"""Published weights: what there is, how images are prepared for them, and files into variables."""
