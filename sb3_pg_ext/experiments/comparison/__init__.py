"""What runs say of the algorithms that they compare: numbers, figures, a page, and tables for papers."""
