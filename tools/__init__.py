"""What runs beside the book, as python -m tools.NAME: it imports chapters, never the reverse."""
