"""Solutions of the exercises, and what people do instead; a module for each notebook."""
