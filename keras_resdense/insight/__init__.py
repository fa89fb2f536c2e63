"""Looking inside a built model: numbers first, pictures second."""
