"""Videos: frames in, parts that keep their colours out."""
