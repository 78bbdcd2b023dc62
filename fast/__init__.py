"""The quick forms of what the chapters compute, proven equal to the plain ones, and their benchmark."""
