"""What runs in place of a module's forward: in integers, or while it is trained."""
