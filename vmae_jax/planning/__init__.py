"""What a run will cost, read off the program that its devices would run."""
