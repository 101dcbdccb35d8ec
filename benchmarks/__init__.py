"""Speed and memory beside the code that users run today."""
