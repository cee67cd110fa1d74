"""Getting data sets, and checking them."""
