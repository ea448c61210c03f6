"""What `bench` measures: a module for each question, over a stage they share. Nothing that watches loads it."""
