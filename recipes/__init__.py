"""Recipes: how the bundled models were made, step by step."""
