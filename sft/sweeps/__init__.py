"""Many runs of one recipe: the grid, running its points, what came out, the table and the page."""
