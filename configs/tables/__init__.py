"""Recipes of the cells of the tables in ``eval/tables``."""
