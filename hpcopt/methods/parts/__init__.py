"""What methods share: objects that a method holds, named after what they do."""
