"""What a run wrote into its folder: owned files, a journal, a lock."""
