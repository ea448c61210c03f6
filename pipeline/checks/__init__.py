"""What `doctor` knows to ask: a module for each kind of thing that can be amiss, and what they share."""
