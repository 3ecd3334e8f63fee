"""The press: runs the notebooks, stages and builds the book, and is the command line."""
