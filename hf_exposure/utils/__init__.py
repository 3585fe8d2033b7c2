"""What every room needs and no room owns: files, argument checks, words, progress."""
