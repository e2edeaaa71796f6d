"""Parts of `merge`: which modules adapters change, their weights merged a few at a time, the folder, the comparison."""
